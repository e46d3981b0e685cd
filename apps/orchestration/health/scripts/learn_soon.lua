-- A server is asked for its models with its next probe, where it has a turn.
local raw = redis.call('HGET', ARGV[1], ARGV[2])
if raw then
    local turn = cjson.decode(raw)
    turn.learn = 0
    redis.call('HSET', ARGV[1], ARGV[2], cjson.encode(turn))
end
