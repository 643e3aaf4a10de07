"""The logic of Groundcrew that hosts, images and tests share.

Imported as ``ansible.module_utils.groundcrew`` by modules on hosts and as ``groundcrew`` everywhere
else. Only the standard library is imported when a module is loaded; S3 clients are passed in or
made by :mod:`objects`.
"""
