-- Counts one more (ARGV[3] = 1) or one less (-1); none are left out, so that whoever is there is failing.
local count = redis.call('HINCRBY', ARGV[1], ARGV[2], ARGV[3])
if count <= 0 then
    redis.call('HDEL', ARGV[1], ARGV[2])
end
return count
