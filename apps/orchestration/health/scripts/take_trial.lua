-- Whether it is the caller's turn to try a server, else how long (ms) it isn't yet: 1, 2, 4 … s after the last one.
local clock, key = redis.call('TIME'), 'fleet:trial:' .. ARGV[1]
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local last = redis.call('HMGET', key, 'at', 'count')
local count = tonumber(last[2] or 0)
local pause = count > 0 and math.min(tonumber(ARGV[2]), 1000 * 2 ^ (count - 1)) or 0
local left = tonumber(last[1] or 0) + pause - now
if left > 0 and left <= pause then
    return {0, math.ceil(left)}
end
redis.call('HSET', key, 'at', now, 'count', math.min(count + 1, 20))
redis.call('EXPIRE', key, 3600)
return {1, 0}
