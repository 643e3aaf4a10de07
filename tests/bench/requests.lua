-- For wrk: posts the bodies of a file in turn and prints what happened as one line of JSON.
-- The file (first argument after --): header lines, an empty line, then one body a line. It holds a key at times, and a command line is no place for one.
-- Second argument: requests a second of this thread, sent on schedule; without it as fast as answers come.
local ffi = require("ffi")
ffi.cdef [[ struct moment { long seconds, nanoseconds; }; int clock_gettime(int, struct moment *); ]]
local moment = ffi.new("struct moment")
local prepared, number = {}, 0

local function milliseconds()
   ffi.C.clock_gettime(1, moment)
   return tonumber(moment.seconds) * 1e3 + tonumber(moment.nanoseconds) / 1e6
end

function init(arguments)
   local headers, bodies = {}, false
   local rate = tonumber(arguments[2])
   if rate then
      local due = milliseconds()
      -- wrk asks for it only if there is one.
      function delay()
         local now = milliseconds()
         -- Who is behind catches up, but not with more than a second's requests.
         due = math.max(due + 1e3 / rate, now - 1e3)
         return math.max(0, due - now)
      end
   end
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
