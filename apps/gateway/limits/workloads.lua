-- Workloads: places that callers hold until they use them, give them back or the lease ends.
--
-- A place is held under a name of its own (`places.lua`): it counts exactly, outlives the worker that took it, and ends
-- by itself. Under that name it also counts as one of the requests that run at once, for all who limit these: what is
-- held and what runs are never more together. The request that uses it takes that over (`admit.lua`).
--
-- ARGV: what to do, then
--   hold      ID, caller, model, priority, complexity, most that the caller may hold (0: any number), lease (ms), the
--             decision, number of its quotas, then for each: holder, requests at once; number of servers, then for
--             each: name, limit (0: none), how long the work would take there (ms)
--             gives HELD and the record; TAKEN, where the caller holds it for another model; FULL; TOO_MANY, which
--             quota (from 0; -1: none) and how long until the first of what the caller holds ends (ms)
--   move      NAME, the server where it is, the decision, number of servers, then these as above: 1 where it has moved
--   use       ID, caller, model, worker: the record, whose place is that worker's from now on; or nothing
--   release   ID, caller, model (empty: whichever it is): the record; or nothing
--   holders   ID: the callers who hold a workload of that id
--   shelves   where workloads are and for which models: `SERVER MODEL` for each pair
--   stranded  server, model, most: of the workloads there, for it, NAME and complexity for each
--
-- A record is: server, 1 where it holds a place there, model, priority, when the lease ends (ms), when the work would be
-- done (ms), the decision
--
-- limits:workload:NAME           hash of that, the complexity and the quotas' holders
-- limits:workloads:SERVER MODEL  sorted set of NAME → when its lease ends
-- limits:works:CALLER            the same for a caller
-- limits:holders:ID              sorted set of CALLER → when the lease of his workload of that id ends
-- limits:shelves                 sorted set of `SERVER MODEL` → when the last lease there ends
local HELD, TAKEN, FULL, TOO_MANY = 0, 1, 2, 3
local ONE_ENDS_IN = 1000  -- of which nobody knows when
local FIELDS = {'server', 'held', 'model', 'priority', 'ends', 'done', 'decision'}

local function record(name)
    return redis.call('HMGET', workload(name), unpack(FIELDS))
end

-- Takes the ended ones out of a set, and gives how many are left in it.
local function count(set)
    redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
    return redis.call('ZCARD', set)
end

local function enlist(set, member, ends)
    redis.call('ZADD', set, 'GT', ends, member)
    local last = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')
    redis.call('PEXPIRE', set, math.max(1, tonumber(last[2]) - now))
end

local function shelf(server, name)
    return server .. ' ' .. redis.call('HGET', workload(name), 'model')
end

local function take_servers()
    local servers = {}
    for i = 1, tonumber(take()) do
        servers[i] = {name = take(), limit = tonumber(take()), lasts = tonumber(take())}
    end
    return servers
end

local function take_quotas()
    local quotas = {}
    for i = 1, tonumber(take()) do
        quotas[i] = {holder = take(), at_once = tonumber(take())}
    end
    return quotas
end

-- Which of the quotas (from 0) allows no more at once; nil where all do.
local function full_one(quotas)
    for i, quota in ipairs(quotas) do
        if running(quota.holder) >= quota.at_once then
            return i - 1
        end
    end
end

local function until_one_ends(works)
    local first = redis.call('ZRANGE', works, 0, 0, 'WITHSCORES')[2]
    return first and tonumber(first) - now or ONE_ENDS_IN
end

-- The first with a place, which is the workload's then.
local function find_place(name, servers, ends)
    for _, server in ipairs(servers) do
        if server.limit == 0 then
            return server
        end
        if running_for_another(server.name, server.limit) < server.limit then
            hold('@' .. server.name, holder(name, ends))
            return server
        end
    end
end

local function put(name, server, decision, ends)
    redis.call('HSET', workload(name), 'server', server.name, 'held', server.limit > 0 and 1 or 0, 'done', string.format('%.0f', now + server.lasts),
        'decision', decision)
    enlist('limits:workloads:' .. shelf(server.name, name), name, ends)
    enlist('limits:shelves', shelf(server.name, name), ends)
end

-- Gives up what a workload has on a server; the place is free then, unless `heir` gets it.
local function take_away(name, server, ends, heir)
    redis.call('ZREM', 'limits:workloads:' .. shelf(server, name), name)
    local held = redis.call('HDEL', 'limits:running:@' .. server, holder(name, ends)) == 1
    if held and heir then
        hold('@' .. server, heir)
    elseif held then
        hand_on(server)
    end
    return held
end

local function forget(id, caller, server, ends, heir)
    local name = name_of(caller, id)
    local held = take_away(name, server, ends, heir)
    for _, quota in ipairs(cjson.decode(redis.call('HGET', workload(name), 'quotas') or '[]')) do
        redis.call('HDEL', 'limits:running:' .. quota, holder(name, ends))
    end
    redis.call('ZREM', 'limits:workers', holder(name, ends))
    redis.call('ZREM', 'limits:works:' .. caller, name)
    redis.call('ZREM', 'limits:holders:' .. id, caller)
    redis.call('DEL', workload(name))
    return held
end

-- Puts a workload on another server; where none has a place it stays where it is.
local function move(name, from, decision, servers, ends)
    local server = find_place(name, servers, ends)
    if not server then
        return 0
    end
    take_away(name, from, ends)
    put(name, server, decision, ends)
    return 1
end

local function hold_workload(id, caller, model, priority, complexity, most, lease, decision, quotas, servers)
    local name = name_of(caller, id)
    local known = redis.call('HMGET', workload(name), 'model', 'server', 'ends')
    if known[1] then
        if known[1] ~= model then
            return {TAKEN}
        end
        local fits = false
        for _, server in ipairs(servers) do
            fits = fits or server.name == known[2]
        end
        if not fits then
            move(name, known[2], decision, servers, known[3])
        end
        return {HELD, unpack(record(name))}
    end
    local works = 'limits:works:' .. caller
    local full = count(works) >= most and most > 0 and -1 or full_one(quotas)
    if full then
        return {TOO_MANY, full, until_one_ends(works)}
    end
    local ends = string.format('%.0f', now + lease)
    local server = find_place(name, servers, ends)
    if not server then
        return {FULL}
    end
    local holders = {}
    redis.call('ZADD', 'limits:workers', ends, holder(name, ends))
    for i, quota in ipairs(quotas) do
        hold(quota.holder, holder(name, ends))
        holders[i] = quota.holder
    end
    redis.call('HSET', workload(name), 'model', model, 'priority', priority, 'complexity', complexity, 'quotas', cjson.encode(holders), 'ends', ends)
    put(name, server, decision, ends)
    redis.call('PEXPIRE', workload(name), lease)
    enlist(works, name, ends)
    enlist('limits:holders:' .. id, caller, ends)
    return {HELD, unpack(record(name))}
end

local function use(id, caller, model, worker)
    local found = record(name_of(caller, id))
    if found[3] ~= model then
        return {}
    end
    found[2] = forget(id, caller, found[1], found[5], worker) and '1' or '0'
    return found
end

local function release(id, caller, model)
    local found = record(name_of(caller, id))
    if not found[3] or (model ~= '' and model ~= found[3]) then
        return {}
    end
    forget(id, caller, found[1], found[5])
    return found
end

local function stranded(set, most)
    local found = {}
    count(set)
    for _, id in ipairs(redis.call('ZRANGE', set, 0, most - 1)) do
        local complexity = redis.call('HGET', workload(id), 'complexity')
        if complexity then
            found[#found + 1] = id
            found[#found + 1] = complexity
        end
    end
    return found
end

local what = take()
if what == 'hold' then
    return hold_workload(take(), take(), take(), take(), take(), tonumber(take()), tonumber(take()), take(), take_quotas(),
        take_servers())
elseif what == 'move' then
    local name, from, decision = take(), take(), take()
    local known = redis.call('HMGET', workload(name), 'server', 'ends')
    return known[1] == from and move(name, from, decision, take_servers(), known[2]) or 0
elseif what == 'use' then
    return use(take(), take(), take(), take())
elseif what == 'release' then
    return release(take(), take(), take())
elseif what == 'holders' then
    local holders = 'limits:holders:' .. take()
    count(holders)
    return redis.call('ZRANGE', holders, 0, -1)
elseif what == 'shelves' then
    count('limits:shelves')
    return redis.call('ZRANGE', 'limits:shelves', 0, -1)
end
return stranded('limits:workloads:' .. take() .. ' ' .. take(), tonumber(take()))
