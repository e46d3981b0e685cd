-- Keeps a load under the time of Redis's own clock; it is the last field of what is encoded.
local clock = redis.call('TIME')
local at = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('HSET', ARGV[1], ARGV[2], (string.gsub(ARGV[3], '"at":%d+}$', '"at":' .. at .. '}')))
