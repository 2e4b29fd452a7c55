-- wrk ... -s post.lua URL -- FILE MEDIA_TYPE: posts the file until time is up, then prints RESULT and a JSON object.
-- rps counts answers of status 2xx, requests all answers; errors are connections that failed or timed out.

function init(args)
   local file = assert(io.open(args[1], "rb"))
   wrk.method, wrk.body = "POST", file:read("*a")
   wrk.headers["Content-Type"] = args[2]
   file:close()
end

function done(summary, latency)
   local failed = summary.errors
   print(string.format(
      'RESULT {"rps": %.3f, "p50_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f, "requests": %d, "refused": %d, "errors": %d}',
      (summary.requests - failed.status) * 1e6 / summary.duration,
      latency:percentile(50) / 1e3,
      latency:percentile(99) / 1e3,
      latency.max / 1e3,
      summary.requests,
      failed.status,
      failed.connect + failed.read + failed.write + failed.timeout))
end
