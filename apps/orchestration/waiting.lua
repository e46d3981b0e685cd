-- Tells how many requests wait in Citadel for a place on each server that somebody waits for, by the keys that
-- apps/gateway/limits/places.lua and workers.lua keep. One that several servers could take waits for each of them; those
-- whose worker is dead wait no more, though their tickets are there until their turn comes.
--
-- Gives: server, count, server, count …
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local alive = {}
local function is_alive(worker)
    if alive[worker] == nil then
        local ends = redis.call('ZSCORE', 'limits:workers', worker)
        alive[worker] = ends and tonumber(ends) > now or false
    end
    return alive[worker]
end

-- A ticket may stand in the lines of many servers.
local waits = {}
local function does_wait(ticket)
    if waits[ticket] == nil then
        local worker = redis.call('HGET', 'limits:ticket:' .. ticket, 'worker')
        waits[ticket] = worker and is_alive(worker) or false
    end
    return waits[ticket]
end

local found = {}
for _, server in ipairs(redis.call('HKEYS', 'limits:waited')) do
    local count = 0
    for _, line in ipairs(redis.call('ZRANGE', 'limits:waits:' .. server, 0, -1)) do
        for _, ticket in ipairs(redis.call('ZRANGE', 'limits:line:' .. server .. ' ' .. line, 0, -1)) do
            if does_wait(ticket) then
                count = count + 1
            end
        end
    end
    found[#found + 1] = server
    found[#found + 1] = count
end
return found
