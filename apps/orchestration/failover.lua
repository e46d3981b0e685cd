-- A server's failover: begun, told, ended, and that told. By Redis's clock.
--
-- ARGV: begin | claim | told | end | enabled | claim end | end told, server;
--       with begin: automatic | manual; with claim and claim end: milliseconds of patience
-- Gives 1 to the one who has brought it about and shall tell it, else 0. An operator's failover alone ends with `enabled`.
--
-- fleet:failover  hash of server → mark {cause, at, told, claimed}
-- fleet:failover_ended  hash of server → when somebody last set about to tell its end; 0: nobody has
-- fleet:moved     grows when servers go into failover or out of it
local what, server = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local raw = redis.call('HGET', 'fleet:failover', server)
local mark = raw and cjson.decode(raw)

local function is_claimed(at)
    return now - at < tonumber(ARGV[3]) and now >= at
end

local function keep()
    redis.call('HSET', 'fleet:failover', server, cjson.encode(mark))
end

if what == 'begin' then
    if mark and (mark.cause == 'manual' or mark.cause == ARGV[3]) then
        return 0
    end
    mark = {cause = ARGV[3], at = now, told = false, claimed = now}
    keep()
    redis.call('HDEL', 'fleet:failover_ended', server)
    redis.call('INCR', 'fleet:moved')
    return 1
end
if what == 'claim end' then
    local at = redis.call('HGET', 'fleet:failover_ended', server)
    if not at or is_claimed(tonumber(at)) then
        return 0
    end
    redis.call('HSET', 'fleet:failover_ended', server, now)
    return 1
elseif what == 'end told' then
    return redis.call('HDEL', 'fleet:failover_ended', server)
end
if not mark or what == 'enabled' and mark.cause ~= 'manual' then
    return 0
end
if what == 'claim' then
    if mark.told or is_claimed(mark.claimed) then
        return 0
    end
    mark.claimed = now
    keep()
elseif what == 'told' then
    mark.told = true
    keep()
elseif what == 'end' or what == 'enabled' then
    redis.call('HDEL', 'fleet:failover', server)
    if mark.told then
        redis.call('HSET', 'fleet:failover_ended', server, 0)
    end
    redis.call('INCR', 'fleet:moved')
end
return 1
