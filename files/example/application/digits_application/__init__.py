"""The example application: draw a digit, see the prediction; see the last batch run."""
