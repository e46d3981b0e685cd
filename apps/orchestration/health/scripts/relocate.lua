-- Forgets how a server was at its former address, or as another kind; once, whoever notices the change.
local server, url, kind, moved = unpack(ARGV)
local key, place = 'fleet:relocated:' .. server, kind .. ' ' .. url
if redis.call('GET', key) == place then
    return {0, ''}
end
redis.call('SET', key, place, 'EX', 60)
redis.call('HDEL', 'fleet:observed', server)
redis.call('HDEL', 'fleet:reported', server)
if moved == '0' then
    return {0, ''}
end
local raw = redis.call('HGET', 'fleet:health', server)
redis.call('HDEL', 'fleet:health', server)
redis.call('HDEL', 'fleet:heartbeats', server)
redis.call('HDEL', 'fleet:silent', server)
redis.call('HDEL', 'fleet:failing', server)
redis.call('HDEL', 'fleet:tallies', server)
redis.call('DEL', 'fleet:trial:' .. server)
redis.call('INCR', 'fleet:moved')
local before = raw and cjson.decode(raw).status or 'healthy'
if before ~= 'healthy' then
    local clock = redis.call('TIME')
    redis.call('RPUSH', 'fleet:untold', cjson.encode({
        server = server, before = before, status = 'healthy', source = 'probe', reason = 'moved',
        at = clock[1] * 1000 + math.floor(clock[2] / 1000)
    }))
    redis.call('LTRIM', 'fleet:untold', -10000, -1)
end
return {1, before}
