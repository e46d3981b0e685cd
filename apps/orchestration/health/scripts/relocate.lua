-- Forgets how a server was at its former address, or as another kind; once, whoever notices the change.
local server, url, kind, moved = unpack(ARGV)
local key, place = 'fleet:relocated:' .. server, kind .. ' ' .. url
if redis.call('GET', key) == place then
    return {0, ''}
end
redis.call('SET', key, place, 'EX', 60)
redis.call('HDEL', 'fleet:observed', server)
if moved == '0' then
    return {0, ''}
end
local raw = redis.call('HGET', 'fleet:health', server)
redis.call('HDEL', 'fleet:health', server)
redis.call('HDEL', 'fleet:heartbeats', server)
redis.call('HDEL', 'fleet:silent', server)
redis.call('DEL', 'fleet:trial:' .. server)
redis.call('INCR', 'fleet:moved')
return {1, raw and cjson.decode(raw).status or 'healthy'}
