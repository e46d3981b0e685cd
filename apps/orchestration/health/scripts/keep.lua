-- Keeps loads under the time of Redis's own clock; it is the last field of what is encoded.
--
-- ARGV: hash, then for each server: id, load
local clock = redis.call('TIME')
local at = '"at":' .. clock[1] * 1000 + math.floor(clock[2] / 1000) .. '}'
for i = 2, #ARGV, 2 do
    redis.call('HSET', ARGV[1], ARGV[i], (string.gsub(ARGV[i + 1], '"at":%d+}$', at)))
end
