-- Takes servers off the board that are no longer in the registry.
--
-- ARGV: their ids
local gone = {}
for _, server in ipairs(ARGV) do
    gone[server] = true
    for _, name in ipairs({'health', 'heartbeats', 'reported', 'observed', 'silent', 'failing', 'tallies', 'probes'}) do
        redis.call('HDEL', 'fleet:' .. name, server)
    end
    redis.call('SREM', 'fleet:departed', server)
    redis.call('DEL', 'fleet:trial:' .. server)
end
for _, name in ipairs(redis.call('SMEMBERS', 'fleet:exceeded')) do
    if gone[string.match(name, '^%S+')] then
        redis.call('SREM', 'fleet:exceeded', name)
    end
end
for _, key in ipairs(redis.call('HKEYS', 'fleet:answers')) do
    if gone[cjson.decode(key)[2]] then
        redis.call('HDEL', 'fleet:paces', key)
        redis.call('HDEL', 'fleet:answers', key)
    end
end
return redis.call('INCR', 'fleet:moved')
