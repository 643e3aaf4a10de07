-- For wrk: posts the bodies of a file in turn and prints what happened as one line of JSON.
-- The file (first argument after --): header lines, an empty line, then one body a line. It holds a key at times, and a command line is no place for one.
local prepared, number = {}, 0

function init(arguments)
   local headers, bodies = {}, false
   for line in io.lines(arguments[1]) do
      if bodies then
         prepared[#prepared + 1] = wrk.format("POST", nil, headers, line)
      elseif line == "" then
         bodies = true
      else
         local name, value = line:match("^([^:]+): (.*)$")
         headers[name] = value
      end
   end
end

function request()
   number = number % #prepared + 1
   return prepared[number]
end

function done(summary, latency, _)
   local errors = summary.errors
   io.write(string.format(
      'groundcrew {"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "refused": %d, "failed": %d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
