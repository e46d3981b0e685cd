-- A worker hears heartbeats at this moment; where none did for a while, they are heard since now.
--
-- ARGV: the hash, the milliseconds after which it is a gap
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local at = tonumber(redis.call('HGET', ARGV[1], 'at') or 0)
if math.abs(now - at) > tonumber(ARGV[2]) then
    redis.call('HSET', ARGV[1], 'since', now)
end
redis.call('HSET', ARGV[1], 'at', now)
