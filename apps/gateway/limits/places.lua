-- Places on servers, and who waits for one. Included before the scripts that call these
-- functions.
--
-- A server with a limit has so many places; who holds one stands in limits:running:@SERVER, as for clients. A request
-- that finds all its servers full gets a ticket. Who frees a place hands it on in the same call, so that nobody can
-- take it in between: by priority, and within a priority fair between teams, by start-time fair queueing (Goyal,
-- Vin, Cheng, SIGCOMM 1996): each ticket's tag is one more than its team's last, but never behind the server's time.
--
-- limits:waits:SERVER   sorted set of tickets, the next first: by priority, then tag
-- limits:time:SERVER    hash; `now:PRIORITY` the virtual time, `PRIORITY:TEAM` the last tag of a team
-- limits:waited         hash of server → its limit, for servers that somebody waits for
-- limits:room:MODEL     sorted set of the tickets that wait for a model: by priority, then arrival
-- limits:ticket:TICKET  hash of worker, model, servers (joined by spaces)
-- limits:grants:WORKER  list of `TICKET SERVER`, or of `TICKET` alone, whose place in the room a better one has
local BAND = 1e13
local GRANTS_KEPT = 10000
local CLEANED_UP = 5000

local function forget_ticket(ticket, servers, model)
    for server in string.gmatch(servers, '%S+') do
        redis.call('ZREM', 'limits:waits:' .. server, ticket)
        if redis.call('EXISTS', 'limits:waits:' .. server) == 0 then
            redis.call('HDEL', 'limits:waited', server)
            redis.call('DEL', 'limits:time:' .. server)
        end
    end
    redis.call('ZREM', 'limits:room:' .. model, ticket)
    redis.call('DEL', 'limits:ticket:' .. ticket)
end

local function leave(ticket)
    local known = redis.call('HMGET', 'limits:ticket:' .. ticket, 'servers', 'model')
    if known[1] then
        forget_ticket(ticket, known[1], known[2])
    end
end

local function tell(worker, words)
    redis.call('RPUSH', 'limits:grants:' .. worker, words)
    redis.call('PEXPIRE', 'limits:grants:' .. worker, GRANTS_KEPT)
end

-- Hands the free places of a server to those who wait for it.
local function grant(server, limit)
    local waits, time = 'limits:waits:' .. server, 'limits:time:' .. server
    local free = limit - running('@' .. server)
    while free > 0 do
        local first = redis.call('ZRANGE', waits, 0, 0, 'WITHSCORES')
        local ticket = first[1]
        if not ticket then
            return
        end
        local known = redis.call('HMGET', 'limits:ticket:' .. ticket, 'worker', 'servers', 'model')
        if known[1] and is_alive(known[1]) then
            local score = tonumber(first[2])
            local band = math.floor(score / BAND)
            redis.call('HSET', time, 'now:' .. band, score - band * BAND)
            hold('@' .. server, known[1])
            forget_ticket(ticket, known[2], known[3])
            tell(known[1], ticket .. ' ' .. server)
            free = free - 1
        elseif known[1] then
            forget_ticket(ticket, known[2], known[3])
        else
            redis.call('ZREM', waits, ticket)
        end
    end
end

-- Hands on what has become free on a server, if somebody waits for it.
local function hand_on(server)
    local limit = redis.call('HGET', 'limits:waited', server)
    if limit then
        grant(server, tonumber(limit))
    end
end

-- Makes room for a request of this priority where the room is full; gives whether there is room.
local function make_room(room, size, band)
    if redis.call('ZCARD', room) < size then
        return true
    end
    for _, ticket in ipairs(redis.call('ZRANGE', room, 0, -1)) do
        if redis.call('EXISTS', 'limits:ticket:' .. ticket) == 0 then
            redis.call('ZREM', room, ticket)
        end
    end
    if redis.call('ZCARD', room) < size then
        return true
    end
    local last = redis.call('ZRANGE', room, -1, -1, 'WITHSCORES')
    if not last[1] or math.floor(tonumber(last[2]) / BAND) <= band then
        return false
    end
    local worker = redis.call('HGET', 'limits:ticket:' .. last[1], 'worker')
    leave(last[1])
    tell(worker, last[1])
    return true
end

-- Lets a request wait. Gives its position, and what it may expect to wait (ms); 0 for a full room, less for too long.
local function wait(asked, worker)
    local room, band = 'limits:room:' .. asked.model, 3 - asked.priority
    local places = 0
    for _, server in ipairs(asked.servers) do
        places = places + server.limit
    end
    local position = redis.call('ZCOUNT', room, '-inf', (band + 1) * BAND - 1) + 1
    local expected = math.ceil(position / places) * asked.hold
    if expected > asked.patience then
        return -position, expected
    end
    if not make_room(room, asked.room, band) then
        return 0, expected
    end
    local names = {}
    for i, server in ipairs(asked.servers) do
        local time = 'limits:time:' .. server.name
        local tag = math.max(
            tonumber(redis.call('HGET', time, 'now:' .. band) or 0),
            tonumber(redis.call('HGET', time, band .. ':' .. asked.team) or 0)) + 1
        redis.call('HSET', time, band .. ':' .. asked.team, tag)
        redis.call('ZADD', 'limits:waits:' .. server.name, band * BAND + tag, asked.ticket)
        redis.call('HSET', 'limits:waited', server.name, server.limit)
        names[i] = server.name
    end
    redis.call('ZADD', room, band * BAND + now, asked.ticket)
    local key = 'limits:ticket:' .. asked.ticket
    redis.call('HSET', key, 'worker', worker, 'model', asked.model, 'servers', table.concat(names, ' '))
    redis.call('PEXPIRE', key, asked.patience + CLEANED_UP)
    return position, expected
end
