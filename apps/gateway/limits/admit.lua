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

-- What a request wants: where it stands in ARGV, and of how many servers it speaks; nil for one that wants none.
local WORDS = 8
local function take_wanted()
    local count = tonumber(take())
    if count == 0 then
        return nil
    end
    local wanted = {at = position, count = count}
    position = position + WORDS + 2 * count
    return wanted
end

local function server_of(wanted, i)
    local at = wanted.at + WORDS + 2 * i
    return ARGV[at - 1], tonumber(ARGV[at])
end

-- The same in full, which only those need who must wait.
local function in_full(wanted)
    local ticket, model, team, priority, room, patience, hold_ms, age = unpack(ARGV, wanted.at + 1, wanted.at + WORDS)
    local servers = {}
    for i = 1, wanted.count do
        local name, limit = server_of(wanted, i)
        servers[i] = {name = name, limit = limit}
    end
    return {ticket = ticket, model = model, team = team, priority = tonumber(priority), room = tonumber(room),
        patience = tonumber(patience), hold = tonumber(hold_ms), arrived = now - tonumber(age), servers = servers}
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
    local asked = in_full(take_wanted())
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

-- What runs for each holder, and what each client was admitted lately, is asked once for all admissions, and what is let
-- in is written at the end: nothing else is let in or released between them.
local at_once, begun, windows = {}, {}, {}
local function running_now(holder)
    at_once[holder] = at_once[holder] or running(holder)
    return at_once[holder]
end

local function begin(holder)
    at_once[holder] = running_now(holder) + 1
    begun[holder] = (begun[holder] or 0) + 1
end

local function window_of(client)
    local window = windows[client]
    if not window then
        window = {key = 'limits:window:' .. client, new = 0}
        local first = tonumber(redis.call('LINDEX', window.key, 0))
        while first and first <= now - 60000 do
            redis.call('LPOP', window.key)
            first = tonumber(redis.call('LINDEX', window.key, 0))
        end
        local last = first and tonumber(redis.call('LINDEX', window.key, -1))
        while last and last > now do  -- the clock has been set back
            redis.call('RPOP', window.key)
            last = tonumber(redis.call('LINDEX', window.key, -1))
        end
        window.kept = redis.call('LLEN', window.key)
        windows[client] = window
    end
    return window
end

-- How long until a client with so many admissions in its window may have one more.
local function until_free(window, used, limit)
    local leaves = used - limit
    return (leaves < window.kept and tonumber(redis.call('LINDEX', window.key, leaves)) or now) + 60000 - now
end

local MOST_VALUES = 1000  -- of one command, for certain
local function write_down()
    for holder, requests in pairs(begun) do
        hold(holder, worker, requests)
    end
    for _, window in pairs(windows) do
        for first = 1, window.new, MOST_VALUES do
            local times = {}
            for i = 1, math.min(MOST_VALUES, window.new - first + 1) do
                times[i] = now
            end
            redis.call('RPUSH', window.key, unpack(times))
            redis.call('PEXPIRE', window.key, 61000)
        end
    end
end

-- Gives the verdict on a place: {0, which server, 0, 0}, or {4 to 6, -1, position, what the wait would be}.
local function find_place(wanted)
    if not wanted then
        return {0, 0, 0, 0}
    end
    for i = 1, wanted.count do
        local name, limit = server_of(wanted, i)
        if limit == 0 then
            return {0, i - 1, 0, 0}
        end
        if running_now('@' .. name) < limit then
            begin('@' .. name)
            return {0, i - 1, 0, 0}
        end
    end
    local verdict, place, expected = wait(in_full(wanted), worker)
    return {verdict, -1, place, expected}
end

local function decide(client, limit, concurrent, wanted)
    if client == '' then
        local place = find_place(wanted)
        return {place[1], 0, 0, place[4], 0, place[2], place[3]}
    end
    local window = limit > 0 and window_of(client)
    local used = window and window.kept + window.new or 0
    if window and used >= limit then
        local retry = until_free(window, used, limit)
        return {2, 0, retry, retry, 0, -1, 0}
    end
    local before = concurrent > 0 and running_now(client) or 0
    if concurrent > 0 and before >= concurrent then
        return {3, math.max(0, limit - used), 0, 1000, before, -1, 0}
    end
    if tokens and tokens < 1 then
        return {1, math.max(0, limit - used), 0, math.ceil((1 - tokens) * 60000 / per_minute), 0, -1, 0}
    end
    local place = find_place(wanted)
    if place[1] > 4 then
        return {place[1], math.max(0, limit - used), 0, place[4], before, -1, place[3]}
    end
    if tokens then
        tokens = tokens - 1
    end
    if window then
        window.new = window.new + 1
    end
    if concurrent > 0 then
        begin(client)
    end
    return {place[1], limit - used - 1, 60000, place[4], before + 1, place[2], place[3]}
end

local verdicts = {known and tonumber(known) > now and 1 or 0}
for _ = 1, tonumber(take()) do
    local client, limit, concurrent = take(), tonumber(take()), tonumber(take())
    verdicts[#verdicts + 1] = decide(client, limit, concurrent, take_wanted())
end
write_down()
if tokens then
    redis.call('HSET', 'limits:global', 'tokens', tostring(tokens), 'at', now)
    redis.call('EXPIRE', 'limits:global', 120)
end
return verdicts
