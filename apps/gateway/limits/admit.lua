-- Decides for all requests of one turn of a worker, in one go, by Redis's clock.
--
-- ARGV: worker, lease (ms), global requests a minute, global burst, 1 to look after all who wait, else 0,
--       number of releases, then for each: holder, count
--       number of tickets that are given up, then these
--       number of tickets that wait for other servers than until now, then for each: what it wants
--       number of admissions, then for each: client, requests a minute, concurrent    (0 is no limit; an empty client
--           was admitted before and needs but a place), what it wants
--       What one wants: number of servers with limits; where there are any: ticket, model, team, priority (0 to 3), size
--           of the room, patience (ms), how long a place is usually held (ms), how long ago the request came (ms), then
--           for each server: name, limit (0: none)
-- Gives: 1 if the worker was known to be alive, else 0; then for each admission:
--        {verdict, remaining, reset (ms), retry (ms), running now, which of the servers (from 0), position};
--        verdict: 0 admitted, 1 global, 2 requests a minute, 3 concurrent, 4 admitted and waits for a place,
--        5 the room is full, 6 it would wait for too long; of these three retry is what the wait is expected to be
--
-- limits:window:CLIENT  list of the times (ms) at which requests were admitted in the last 60 s: an exact sliding window
-- limits:global         hash of tokens, at: the bucket
local worker, lease = take(), tonumber(take())
local per_minute, burst = tonumber(take()), tonumber(take())
local look_after_all = take() == '1'
local known = redis.call('ZSCORE', 'limits:workers', worker)
redis.call('ZADD', 'limits:workers', now + lease, worker)
alive[worker] = true

-- The servers that a request may go to, where some have limits.
local function take_wanted()
    local count = tonumber(take())
    if count == 0 then
        return nil
    end
    local asked = {ticket = take(), model = take(), team = take(), priority = tonumber(take()), room = tonumber(take()),
        patience = tonumber(take()), hold = tonumber(take()), arrived = now - tonumber(take()), servers = {}}
    for i = 1, count do
        asked.servers[i] = {name = take(), limit = tonumber(take())}
    end
    return asked
end

local freed = {}
for _ = 1, tonumber(take()) do
    local holder, count = take(), tonumber(take())
    local key = 'limits:running:' .. holder
    if redis.call('HINCRBY', key, worker, -count) <= 0 then
        redis.call('HDEL', key, worker)
    end
    if string.sub(holder, 1, 1) == '@' then
        freed[#freed + 1] = string.sub(holder, 2)
    end
end
for _ = 1, tonumber(take()) do
    leave(take())
end
local elsewhere = {}
for _ = 1, tonumber(take()) do
    local asked = take_wanted()
    wait_elsewhere(asked, worker)
    for _, server in ipairs(asked.servers) do
        elsewhere[server.name] = server.limit
    end
end
for _, server in ipairs(freed) do
    hand_on(server)
end
for server, limit in pairs(elsewhere) do
    grant(server, limit)
end
if look_after_all then
    local waited = redis.call('HGETALL', 'limits:waited')
    for i = 1, #waited, 2 do
        grant(waited[i], tonumber(waited[i + 1]))
    end
end

local tokens
if per_minute > 0 and burst > 0 then
    local bucket = redis.call('HMGET', 'limits:global', 'tokens', 'at')
    tokens = tonumber(bucket[1] or burst)
    local elapsed = math.max(0, now - tonumber(bucket[2] or now))
    tokens = math.min(burst, tokens + elapsed * per_minute / 60000)
end

-- Gives the verdict on a place: {0, which server, 0, 0}, or {4 to 6, -1, position, what the wait would be}.
local function find_place(asked)
    if not asked then
        return {0, 0, 0, 0}
    end
    for i, server in ipairs(asked.servers) do
        if server.limit == 0 then
            return {0, i - 1, 0, 0}
        end
        if running('@' .. server.name) < server.limit then
            hold('@' .. server.name, worker)
            return {0, i - 1, 0, 0}
        end
    end
    local verdict, place, expected = wait(asked, worker)
    return {verdict, -1, place, expected}
end

local function decide(client, limit, concurrent, asked)
    if client == '' then
        local place = find_place(asked)
        return {place[1], 0, 0, place[4], 0, place[2], place[3]}
    end
    local window, used, head = 'limits:window:' .. client, 0, nil
    if limit > 0 then
        head = redis.call('LINDEX', window, 0)
        while head and tonumber(head) <= now - 60000 do
            redis.call('LPOP', window)
            head = redis.call('LINDEX', window, 0)
        end
        used = redis.call('LLEN', window)
        if used >= limit then
            local until_free = tonumber(redis.call('LINDEX', window, used - limit)) + 60000 - now
            return {2, 0, until_free, until_free, 0, -1, 0}
        end
    end
    local at_once = concurrent > 0 and running(client) or 0
    if concurrent > 0 and at_once >= concurrent then
        return {3, math.max(0, limit - used), 0, 1000, at_once, -1, 0}
    end
    if tokens and tokens < 1 then
        return {1, math.max(0, limit - used), 0, math.ceil((1 - tokens) * 60000 / per_minute), 0, -1, 0}
    end
    local place = find_place(asked)
    if place[1] > 4 then
        return {place[1], math.max(0, limit - used), 0, place[4], at_once, -1, place[3]}
    end
    if tokens then
        tokens = tokens - 1
    end
    if limit > 0 then
        redis.call('RPUSH', window, now)
        redis.call('PEXPIRE', window, 61000)
    end
    if concurrent > 0 then
        hold(client, worker)
    end
    return {place[1], limit - used - 1, 60000, place[4], at_once + 1, place[2], place[3]}
end

local verdicts = {known and tonumber(known) > now and 1 or 0}
for _ = 1, tonumber(take()) do
    local client, limit, concurrent = take(), tonumber(take()), tonumber(take())
    verdicts[#verdicts + 1] = decide(client, limit, concurrent, take_wanted())
end
if tokens then
    redis.call('HSET', 'limits:global', 'tokens', tostring(tokens), 'at', now)
    redis.call('EXPIRE', 'limits:global', 120)
end
return verdicts
