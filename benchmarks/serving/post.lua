-- wrk ... -s post.lua URL -- FILE MEDIA_TYPE [KEY]: posts the file until time is up, with that API key;
-- wrk ... -s post.lua URL -- mix FILE...: sends what the files hold, whole requests, in turn, and counts statuses.
-- Then prints RESULT and a JSON object: rps counts answers of status 2xx, requests all answers.

function init(args)
   if args[1] == "mix" then
      mix(args)
      return
   end
   wrk.method, wrk.body = "POST", read(args[1])
   wrk.headers["Content-Type"] = args[2]
   wrk.headers["X-API-Key"] = args[3]
end

function read(path)
   local file = assert(io.open(path, "rb"))
   local content = file:read("*a")
   file:close()
   return content
end

statuses = {}

function mix(args)
   local requests, last = {}, 0
   for i = 2, #args do requests[i - 1] = read(args[i]) end
   function request()
      last = last % #requests + 1
      return requests[last]
   end
   function response(status)
      local name = tostring(status)
      statuses[name] = (statuses[name] or 0) + 1
   end
end

function setup(thread)
   only_thread = thread
end

function done(summary, latency)
   local failed, counts = summary.errors, {}
   for status, num in pairs(only_thread:get("statuses")) do
      counts[#counts + 1] = string.format('"%s": %d', status, num)
   end
   print(string.format(
      'RESULT {"rps": %.3f, "p50_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f, "requests": %d, "refused": %d, ' ..
      '"connect": %d, "read": %d, "write": %d, "timeout": %d, "statuses": {%s}}',
      (summary.requests - failed.status) * 1e6 / summary.duration,
      latency:percentile(50) / 1e3,
      latency:percentile(99) / 1e3,
      latency.max / 1e3,
      summary.requests,
      failed.status,
      failed.connect,
      failed.read,
      failed.write,
      failed.timeout,
      table.concat(counts, ", ")))
end
