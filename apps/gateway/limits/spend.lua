-- Takes a call from a bucket, where there are enough in it.
--
-- ARGV: hash of the buckets, which of them, what it holds at most, how many calls must be in it
-- Gives: 1 where one was taken, else 0
local buckets, name, most, wanted = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local calls = math.min(most, tonumber(redis.call('HGET', buckets, name) or '0'))
local may = calls >= wanted
redis.call('HSET', buckets, name, string.format('%.6f', may and calls - 1 or calls))
return may and 1 or 0
