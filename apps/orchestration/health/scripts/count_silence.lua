-- Counts one more, unless the last one was but a moment ago.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local count, at = string.match(redis.call('HGET', ARGV[1], ARGV[2]) or '0 0', '(%d+) (%d+)')
local since = now - tonumber(at)
if since >= 0 and since < tonumber(ARGV[3]) then
    return tonumber(count)
end
redis.call('HSET', ARGV[1], ARGV[2], count + 1 .. ' ' .. string.format('%.0f', now))
return count + 1
