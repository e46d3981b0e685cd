-- Gives a server's lease back and says when it is due again, unless the lease has gone to another meanwhile.
--
-- ARGV: server, who took it (a tick, or minus the time), milliseconds until its next probe (-1: as it stands), until its
--       next bare connection
local raw = redis.call('HGET', 'fleet:probes', ARGV[1])
if not raw then
    return 0
end
local turn = cjson.decode(raw)
if turn.holder ~= tonumber(ARGV[2]) then
    return 0
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
turn.lease, turn.holder = nil, nil
if tonumber(ARGV[3]) >= 0 then
    turn.probe, turn.probed = now + ARGV[3], turn.began
end
turn.connect = now + ARGV[4]
redis.call('HSET', 'fleet:probes', ARGV[1], cjson.encode(turn))
return 1
