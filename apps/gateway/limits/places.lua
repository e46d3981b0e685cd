-- Places on servers, and who waits for one. Included before the scripts that call these
-- functions.
--
-- A server with a limit has so many places; who holds one stands in limits:running:@SERVER, as for clients. A request
-- that finds all its servers full gets a ticket. Who frees a place hands it on in the same call, so that nobody can
-- take it in between: by priority, and within a priority fair between teams, by start-time fair queueing (Goyal,
-- Vin, Cheng, SIGCOMM 1996). The requests of a team and priority stand in a *line*, by arrival; a line has a turn, one
-- later than its last, but never behind the server's time, and the line with the lowest turn is next. How long a line
-- is does not matter to the others. Arrival is when the request came to Citadel: one that asks again, because its server
-- has failed, stands where it would if it had waited here from the beginning.
--
-- A BAND is 3 less the priority; a LINE is `BAND:TEAM`.
--
-- limits:waits:SERVER      sorted set of lines, the next first: by band, then turn
-- limits:line:SERVER LINE  sorted set of tickets, by arrival
-- limits:time:SERVER       hash; BAND: the turn that was served last, LINE: the next turn of a line that was served
-- limits:waited            hash of server → its limit, for servers that somebody waits for
-- limits:room:MODEL        sorted set of `TICKET WORKER LINE` for who waits for a model, by arrival
-- limits:ticket:TICKET     hash of worker, model, line, servers (joined by spaces), arrived
-- limits:grants:WORKER     list of `TICKET SERVER`, or of `TICKET` alone, whose place in the room another has
--
-- A place that is held for a workload, and what it counts for its caller, stand under a name of its own,
-- `work:NAME:END`, as if that were a worker whose lease is the workload's. Its NAME is `CALLER/ID`: ids are each caller's
-- own.
--
-- limits:workload:NAME     hash of what is known of a workload (workloads.lua); expires with the lease
--
-- The first two, limits:waited and the tickets are read by apps/orchestration/waiting.lua too.
local BAND = 1e13
local GRANTS_KEPT = 10000
local WORKLOADS = 'work:'

local function name_of(caller, id)
    return caller .. '/' .. id
end

local function workload(name)
    return 'limits:workload:' .. name
end

local function holder(name, ends)
    return WORKLOADS .. name .. ':' .. ends
end

local function band_of(line)
    return tonumber(string.sub(line, 1, 1))
end

local function tickets_of(server, line)
    return 'limits:line:' .. server .. ' ' .. line
end

-- The turn of the first in a line, or of who would be.
local function turn_of(server, line)
    local band = band_of(line)
    local score = redis.call('ZSCORE', 'limits:waits:' .. server, line)
    if score then
        return tonumber(score) - band * BAND
    end
    local known = redis.call('HMGET', 'limits:time:' .. server, band, line)
    return math.max(tonumber(known[1] or 0), tonumber(known[2] or 0))
end

local function step_in(server, line, ticket, arrived)
    local turn = turn_of(server, line)
    redis.call('ZADD', tickets_of(server, line), arrived, ticket)
    redis.call('ZADD', 'limits:waits:' .. server, band_of(line) * BAND + turn, line)
end

local function step_out(server, line, ticket)
    redis.call('ZREM', tickets_of(server, line), ticket)
    if redis.call('EXISTS', tickets_of(server, line)) == 1 then
        return
    end
    redis.call('ZREM', 'limits:waits:' .. server, line)
    if redis.call('EXISTS', 'limits:waits:' .. server) == 0 then
        redis.call('HDEL', 'limits:waited', server)
        redis.call('DEL', 'limits:time:' .. server)
    end
end

-- Ends a wait; gives whose it was.
local function leave(ticket)
    local key = 'limits:ticket:' .. ticket
    local worker, model, line, servers = unpack(redis.call('HMGET', key, 'worker', 'model', 'line', 'servers'))
    if worker then
        for server in string.gmatch(servers, '%S+') do
            step_out(server, line, ticket)
        end
        redis.call('ZREM', 'limits:room:' .. model, ticket .. ' ' .. worker .. ' ' .. line)
        redis.call('DEL', key)
    end
    return worker
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
        local line, score = unpack(redis.call('ZRANGE', waits, 0, 0, 'WITHSCORES'))
        if not line then
            return
        end
        local ticket = redis.call('ZRANGE', tickets_of(server, line), 0, 0)[1]
        local worker = redis.call('HGET', 'limits:ticket:' .. ticket, 'worker')
        if worker and is_alive(worker) then
            local band = band_of(line)
            local turn = tonumber(score) - band * BAND
            redis.call('HSET', time, band, turn, line, turn + 1)
            redis.call('ZADD', waits, band * BAND + turn + 1, line)
            hold('@' .. server, worker)
            leave(ticket)
            tell(worker, ticket .. ' ' .. server)
            free = free - 1
        elseif not leave(ticket) then
            step_out(server, line, ticket)
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

-- How many run on a server, for one who wants a place now: what has become free without a release, as a lease ended or the
-- limit was raised, is theirs first who wait for it.
local function running_for_another(server, limit)
    local runs = running('@' .. server)
    if runs < limit and redis.call('EXISTS', 'limits:waits:' .. server) == 1 then
        grant(server, limit)
        runs = running('@' .. server)
    end
    return runs
end

-- How many of those who wait for a server have their turn before one more in this line, who has arrived then.
local function count_before(server, line, arrived)
    local start = band_of(line) * BAND
    local before = redis.call('ZCOUNT', tickets_of(server, line), '-inf', arrived)
    local last = turn_of(server, line) + before
    local lines = redis.call('ZRANGEBYSCORE', 'limits:waits:' .. server, '-inf', start + last, 'WITHSCORES')
    for i = 1, #lines, 2 do
        if lines[i] ~= line then
            local score, many = tonumber(lines[i + 1]), redis.call('ZCARD', tickets_of(server, lines[i]))
            if score >= start then
                many = math.min(many, start + last - score + 1)
            end
            before = before + many
        end
    end
    return before
end

-- Makes room for one more in a line where the room is full: at the cost of the lowest priority, there of the line with
-- the most in it, and of the last in that, which may be the new one itself. Gives whether there is room.
local function make_room(room, size, line, arrived)
    if redis.call('ZCARD', room) < size then
        return true
    end
    local count, last, latest, fullest = {[line] = 1}, {}, {}, line
    local entries = redis.call('ZRANGE', room, 0, -1, 'WITHSCORES')
    for i = 1, #entries, 2 do
        local ticket, worker, other = string.match(entries[i], '^(%S+) (%S+) (.*)$')
        if is_alive(worker) then
            count[other], last[other] = (count[other] or 0) + 1, ticket
            latest[other] = tonumber(entries[i + 1])
        else
            leave(ticket)
        end
    end
    if redis.call('ZCARD', room) < size then
        return true
    end
    for other, many in pairs(count) do
        local worse = band_of(other) - band_of(fullest)
        if worse > 0 or (worse == 0 and many > count[fullest]) then
            fullest = other
        end
    end
    if fullest == line and (latest[line] or 0) <= arrived then
        return false
    end
    tell(leave(last[fullest]), last[fullest])
    return true
end

local function line_of(asked)
    return (3 - asked.priority) .. ':' .. asked.team
end

local function enter(asked, worker)
    local names, line, arrived = {}, line_of(asked), asked.arrived
    for i, server in ipairs(asked.servers) do
        step_in(server.name, line, asked.ticket, arrived)
        redis.call('HSET', 'limits:waited', server.name, server.limit)
        names[i] = server.name
    end
    redis.call('ZADD', 'limits:room:' .. asked.model, arrived, asked.ticket .. ' ' .. worker .. ' ' .. line)
    redis.call('HSET', 'limits:ticket:' .. asked.ticket, 'worker', worker, 'model', asked.model, 'line', line,
        'servers', table.concat(names, ' '), 'arrived', arrived)
end

-- Lets a request wait, if it may. Gives the verdict, its position, and what it may expect to wait (ms).
local function wait(asked, worker)
    local line, places, before = line_of(asked), 0, math.huge
    for _, server in ipairs(asked.servers) do
        places = places + server.limit
        before = math.min(before, count_before(server.name, line, asked.arrived))
    end
    local expected = math.ceil((before + 1) * asked.hold / places)
    if expected > asked.patience then
        return 6, before + 1, expected
    end
    if not make_room('limits:room:' .. asked.model, asked.room, line, asked.arrived) then
        return 5, before + 1, expected
    end
    enter(asked, worker)
    return 4, before + 1, expected
end

-- Lets a request wait for other servers than until now, in the same place of its line. One whose ticket isn't known has
-- just had its turn: if that is for a server which it does not want any more, it waits by its arrival; else it will
-- leave.
local function wait_elsewhere(asked, worker)
    local servers, arrived = unpack(redis.call('HMGET', 'limits:ticket:' .. asked.ticket, 'servers', 'arrived'))
    asked.arrived = arrived or asked.arrived
    local wanted = {}
    for _, server in ipairs(asked.servers) do
        wanted[server.name] = true
    end
    for server in string.gmatch(servers or '', '%S+') do
        if not wanted[server] then
            step_out(server, line_of(asked), asked.ticket)
        end
    end
    enter(asked, worker)
end
