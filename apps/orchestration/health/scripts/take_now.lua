-- Takes a lease on one server for a probe that somebody asks for, as a tick takes it: where no other has it, and the
-- last probe began long enough ago.
--
-- ARGV: server, milliseconds of: time between two probes, lease; when it was asked for, 0: now
-- Gives: {1 it is taken, 0 not yet, 2 no need: a probe that began since has ended; now}. The holder is -now.
local server, apart, lease, asked = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local raw = redis.call('HGET', 'fleet:probes', server)
local turn = raw and cjson.decode(raw) or {}
local probed = turn.probed
if probed and asked > 0 and probed >= asked and probed <= now then
    return {2, now}
end
local is_held = turn.lease and turn.lease > now and turn.lease <= now + lease
local is_early = probed and probed <= now and now - probed < apart
if is_held or is_early then
    return {0, now}
end
turn.lease, turn.holder, turn.began = now + lease, -now, now
redis.call('HSET', 'fleet:probes', server, cjson.encode(turn))
return {1, now}
