-- Takes workers whose lease has ended off all that they held, some holders at a time.
--
-- ARGV: where to go on, and of which moment the ended leases are (ms); both 0 at the beginning
-- Gives: both for the next time; where to go on is 0 when all is done
local STEP = 1000
local RUNNING = 'limits:running:'
local cursor, moment = take(), tonumber(take())
if moment == 0 then
    if redis.call('ZCOUNT', 'limits:workers', '-inf', now) == 0 then
        return {'0', 0}
    end
    moment = now
end
local found = redis.call('SCAN', cursor, 'MATCH', RUNNING .. '*', 'COUNT', STEP)
for _, key in ipairs(found[2]) do
    running(string.sub(key, #RUNNING + 1))
end
if found[1] == '0' then
    redis.call('ZREMRANGEBYSCORE', 'limits:workers', '-inf', moment)
end
return {found[1], moment}
