-- What wrk sends, by its arguments: KIND BASE ROUTES BYTES. At the end: what was done, as a line of JSON.

local sent = 0

local browser = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
  .. "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
  .. "Accept-Language: en-US,en;q=0.5\r\n"
  .. "Accept-Encoding: gzip, deflate, br, zstd\r\n"
  .. "Connection: keep-alive\r\n"
  .. "Referer: https://example.com/products/overview\r\n"
  .. "Upgrade-Insecure-Requests: 1\r\n"
  .. "Sec-Fetch-Dest: document\r\n"
  .. "Sec-Fetch-Mode: navigate\r\n"
  .. "Sec-Fetch-Site: same-origin\r\n"

local kinds = {}

function kinds.same() end

function kinds.upload(base, routes, bytes)
  wrk.method = "POST"
  wrk.body = string.rep("x", bytes)
end

-- As one client asks for one thing after another: only the first line differs.
function kinds.paths(base)
  local form = "GET /1k?n=%d HTTP/1.1\r\nHost: r0." .. base .. "\r\n" .. browser .. "\r\n"
  function request()
    sent = sent + 1
    return string.format(form, sent)
  end
end

-- No two heads are the same, nor are those of the answers.
function kinds.varied(base)
  local form = "GET /varied/%d HTTP/1.1\r\nHost: r0." .. base .. "\r\nX-Request-Id: %016x\r\n\r\n"
  function request()
    sent = sent + 1
    return string.format(form, sent, sent * 2654435761 % 4294967296)
  end
end

function kinds.browser(base)
  local form = "GET /varied/%d HTTP/1.1\r\nHost: r0." .. base .. "\r\n" .. browser
    .. "Cookie: session=%016x; theme=dark\r\n\r\n"
  function request()
    sent = sent + 1
    return string.format(form, sent, sent * 2654435761 % 4294967296)
  end
end

-- Every request goes to another host, spread evenly over all of them.
function kinds.hosts(base, routes)
  local form = "GET /1k HTTP/1.1\r\nHost: r%d." .. base .. "\r\n\r\n"
  function request()
    sent = sent + 1
    return string.format(form, sent * 7919 % routes)
  end
end

function init(args)
  wrk.headers["Host"] = "r0." .. args[2]
  kinds[args[1]](args[2], tonumber(args[3]), tonumber(args[4]))
end

function done(summary)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, "late": %d}\n',
    summary.requests, summary.duration / 1e6, errors.status, errors.connect + errors.read + errors.write,
    errors.timeout))
end
