-- What was admitted in the last 60 s, of requests and of tokens. Included before the scripts that call these functions.
--
-- HOLDER is whose limit it is: a key, a key and a class, a team, a model.
--
-- limits:window:HOLDER  list of the times (ms) at which requests were admitted: an exact sliding window
-- limits:tokens:HOLDER  sorted set of tickets, by the times (ms) at which their requests were admitted
-- limits:sizes:HOLDER   hash of ticket → tokens that its request has reserved, or used; `sum` → those of all
--
-- What a request has used beyond its reservation has a ticket of its own: the request's and `+`.
--
-- What is of a time that is yet to come, since the clock was set back, counts as of now when it is next looked at: no
-- sooner out of the window than its 60 s have passed, and no later than 60 s from then on.
local WINDOW = 60000
local KEPT = 61000
local AT_ONCE = 100

-- What is looked at once is kept for the rest of the call: nothing else is let in or released in the meantime.
local windows, purses = {}, {}

local MOST_VALUES = 1000  -- of one command, for certain
local function admit_now(key, requests)
    for first = 1, requests, MOST_VALUES do
        local times = {}
        for i = 1, math.min(MOST_VALUES, requests - first + 1) do
            times[i] = now
        end
        redis.call('RPUSH', key, unpack(times))
        redis.call('PEXPIRE', key, KEPT)
    end
end

local function window_of(holder)
    local window = windows[holder]
    if not window then
        window = {key = 'limits:window:' .. holder, new = 0}
        local first = tonumber(redis.call('LINDEX', window.key, 0))
        while first and first <= now - WINDOW do
            redis.call('LPOP', window.key)
            first = tonumber(redis.call('LINDEX', window.key, 0))
        end
        local last = first and tonumber(redis.call('LINDEX', window.key, -1))
        local ahead = 0
        while last and last > now do  -- the clock has been set back
            redis.call('RPOP', window.key)
            ahead = ahead + 1
            last = tonumber(redis.call('LINDEX', window.key, -1))
        end
        admit_now(window.key, ahead)
        window.kept = redis.call('LLEN', window.key)
        windows[holder] = window
    end
    return window
end

-- How long until a holder with so many admissions in its window may have one more.
local function until_one_more(window, limit)
    local leaves = window.kept + window.new - limit
    return (leaves < window.kept and tonumber(redis.call('LINDEX', window.key, leaves)) or now) + WINDOW - now
end

-- Takes one of those out of a window that were admitted at a moment, which are all alike. Before it is looked at.
local function withdraw(holder, moment)
    redis.call('LREM', 'limits:window:' .. holder, -1, moment)
end

local function take_out(purse, ticket)
    purse.sum = purse.sum - tonumber(redis.call('HGET', purse.sizes, ticket) or 0)
    redis.call('ZREM', purse.key, ticket)
    redis.call('HDEL', purse.sizes, ticket)
    purse.changed, purse.walk = true, nil
end

local function purse_of(holder)
    local purse = purses[holder]
    if not purse then
        purse = {key = 'limits:tokens:' .. holder, sizes = 'limits:sizes:' .. holder}
        purse.sum = tonumber(redis.call('HGET', purse.sizes, 'sum') or 0)
        for _, ticket in ipairs(redis.call('ZRANGEBYSCORE', purse.key, '-inf', now - WINDOW)) do
            take_out(purse, ticket)
        end
        for _, ticket in ipairs(redis.call('ZRANGEBYSCORE', purse.key, '(' .. now, '+inf')) do  -- a clock set back
            redis.call('ZADD', purse.key, now, ticket)
            purse.changed = true
        end
        purses[holder] = purse
    end
    return purse
end

-- Looks at the next of the oldest reservations: how much is free when they, and those before, have left the window.
local function walk_on(purse, walk)
    local first = #walk.freed
    local oldest = redis.call('ZRANGE', purse.key, first, first + AT_ONCE - 1, 'WITHSCORES')
    if #oldest == 0 then
        return false
    end
    local tickets = {}
    for i = 1, #oldest, 2 do
        tickets[#tickets + 1] = oldest[i]
    end
    for i, size in ipairs(redis.call('HMGET', purse.sizes, unpack(tickets))) do
        walk.freed[first + i] = (walk.freed[first + i - 1] or 0) + tonumber(size or 0)
        walk.at[first + i] = tonumber(oldest[2 * i])
    end
    return true
end

-- How long until so many tokens more may be reserved: until enough of the oldest reservations have left the window.
local function until_so_many(purse, tokens, limit)
    local missing, walk = purse.sum + tokens - limit, purse.walk or {freed = {}, at = {}}
    purse.walk = walk  -- for the next one: of a hundred that are refused in one call each would walk all the way again
    while (walk.freed[#walk.freed] or 0) < missing do
        if not walk_on(purse, walk) then
            return WINDOW
        end
    end
    local low, high = 1, #walk.freed
    while low < high do
        local middle = math.floor((low + high) / 2)
        if walk.freed[middle] < missing then
            low = middle + 1
        else
            high = middle
        end
    end
    return walk.at[low] + WINDOW - now
end

local function reserve(purse, ticket, tokens)
    redis.call('ZADD', purse.key, now, ticket)
    redis.call('HSET', purse.sizes, ticket, tokens)
    purse.sum = purse.sum + tokens
    purse.changed = true
end

-- Makes a reservation what was used, where it is still in the window. What was used beyond it counts from now on: as
-- part of it that would be forgotten with it, which may have left the window long ago.
local function settle(holder, ticket, reserved, used)
    local purse = purse_of(holder)
    if used > reserved then
        reserve(purse, ticket .. '+', used - reserved)
    elseif redis.call('HEXISTS', purse.sizes, ticket) == 1 then
        if used == 0 then
            take_out(purse, ticket)
        else
            redis.call('HSET', purse.sizes, ticket, used)
            purse.sum = purse.sum + used - reserved
            purse.changed, purse.walk = true, nil
        end
    end
end

local function write_windows_down()
    for _, window in pairs(windows) do
        admit_now(window.key, window.new)
    end
    for _, purse in pairs(purses) do
        if purse.changed then
            redis.call('HSET', purse.sizes, 'sum', purse.sum)
            redis.call('PEXPIRE', purse.key, KEPT)
            redis.call('PEXPIRE', purse.sizes, KEPT)
        end
    end
end
