-- Tells how many requests wait in Citadel for a place on each server that somebody waits for, by the keys that
-- apps/gateway/limits/places.lua keeps. One that several servers could take waits for each of them.
--
-- Gives: server, count, server, count …
local found = {}
for _, server in ipairs(redis.call('HKEYS', 'limits:waited')) do
    local count = 0
    for _, line in ipairs(redis.call('ZRANGE', 'limits:waits:' .. server, 0, -1)) do
        count = count + redis.call('ZCARD', 'limits:line:' .. server .. ' ' .. line)
    end
    found[#found + 1] = server
    found[#found + 1] = count
end
return found
