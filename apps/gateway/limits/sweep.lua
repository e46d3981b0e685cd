-- Takes workers whose lease has ended off all that they held, some keys at a time. One worker sweeps, for all.
--
-- ARGV: where to go on, and of which moment the ended leases are (ms); both 0 at the beginning
-- Gives: both for the next time; where to go on is 0 when all is done, or there is nothing to do
--
-- limits:sweeping  is there while somebody sweeps
local STEP = 1000
local PATIENCE = 500
local RUNNING = 'limits:running:'
local cursor, moment = take(), tonumber(take())
if moment == 0 then
    local dead = redis.call('ZCOUNT', 'limits:workers', '-inf', '(' .. string.format('%.0f', now))
    if dead == 0 or not redis.call('SET', 'limits:sweeping', 1, 'NX', 'PX', PATIENCE) then
        return {'0', 0}
    end
    moment = now
end
local found = redis.call('SCAN', cursor, 'MATCH', RUNNING .. '*', 'COUNT', STEP)
for _, key in ipairs(found[2]) do
    running(string.sub(key, #RUNNING + 1))
end
if found[1] == '0' then
    redis.call('ZREMRANGEBYSCORE', 'limits:workers', '-inf', '(' .. string.format('%.0f', moment))
    redis.call('DEL', 'limits:sweeping')
else
    redis.call('SET', 'limits:sweeping', 1, 'PX', PATIENCE)
end
return {found[1], moment}
