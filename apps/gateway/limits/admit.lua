-- Decides for all requests of one turn of a worker, in one go, by Redis's clock.
--
-- ARGV: worker, lease (ms), global requests a minute, global burst, 1 to look after all who wait, else 0,
--       number of releases, then for each: holder, count (below 0: so many more run, asked or not)
--       number of reservations that are settled, then for each: holder, ticket, tokens reserved, tokens used
--       number of waits that are over, then for each: when its request was admitted (0: it has its place, and nothing is
--           given back), number of quotas of which it was one of the requests a minute, then their holders
--       number of charges, then for each: purse, amount
--       number of tickets that are given up, then these
--       number of tickets that wait for other servers than until now, then for each: what it wants
--       number of admissions, then for each: number of its quotas (-1: it was admitted before and needs but more of
--           purses, or a place; then its purses and what it wants are all that follows); tokens to reserve; its ticket
--           where these are more than 0; for each quota: holder, requests a minute, tokens a minute, requests at once (0
--           is no limit); number of purses, then for each: name, limit, what the request may take out of it; what it
--           wants. -2 and a nonce may stand before
--           all that (its key, itself, for how many seconds it is remembered, how many new ones the key may bring): it is
--           used up whatever the verdict will be. -3 and a workload's id, caller and model may stand next, which it uses:
--           for what that counts the request counts
--       What one wants: number of servers with limits; where there are any: ticket, model, team, priority (0 to 3), size
--           of the room, patience (ms), how long a place is usually held (ms), how long ago the request came (ms), then
--           for each server: name, limit (0: none)
-- Gives: 0 if the worker was not known to be alive, else 1, or how many workers live if it looks after all; then for each
--        admission:
--        {verdict, which quota (from 0; -1: none), retry (ms), which of the servers (from 0), position,
--         when it was admitted (ms; 0: it need not wait),
--         requests and tokens that are left by each quota, and how many run for it, one after the other}
--        verdict: 0 admitted, 1 global, 2 requests a minute, 3 at once, 4 admitted and waits for a place, 5 the room is
--        full, 6 it would wait for too long, 7 tokens a minute, 8 more tokens than a quota ever allows, 9 not enough left
--        in a purse, 10 what has been spent of it isn't known here (of both `which quota` is which purse), 11 its nonce was
--        used before, 12 its key has brought too many nonces; of 4 to 6 retry is what the wait is expected to be. What a
--        quota doesn't limit is left in a number of 0.
--
-- limits:global         hash of tokens, at: the bucket; owed: what those who wait may give back to it. That is never more
--                       than it lacks: what they took before it was full again has come back to it already.
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
    if count < 0 then
        hold(holder, worker, -count)
    elseif redis.call('HINCRBY', key, worker, whole(-count)) <= 0 then
        redis.call('HDEL', key, worker)
    end
    if string.sub(holder, 1, 1) == '@' then
        freed[#freed + 1] = string.sub(holder, 2)
    end
end
for _ = 1, tonumber(take()) do
    local holder, ticket, reserved, used = take(), take(), tonumber(take()), tonumber(take())
    settle(holder, ticket, reserved, used)
end
local placed, turned_out = 0, 0
for _ = 1, tonumber(take()) do
    local moment = tonumber(take())
    if moment == 0 then
        placed = placed + 1
    else
        turned_out = turned_out + 1
    end
    for _ = 1, tonumber(take()) do
        withdraw(take(), moment)
    end
end
for _ = 1, tonumber(take()) do
    local purse, amount = take(), take()
    charge(purse, amount)
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

local bucket, owed
if per_minute > 0 and burst > 0 then
    local kept = redis.call('HMGET', 'limits:global', 'tokens', 'at', 'owed')
    local elapsed = math.max(0, now - tonumber(kept[2] or now))
    bucket = math.min(burst, tonumber(kept[1] or burst) + elapsed * per_minute / 60000)
    owed = math.max(0, math.min(tonumber(kept[3] or 0) - placed, burst - bucket))
    local back = math.min(turned_out, owed)
    bucket, owed = bucket + back, owed - back
end

-- What runs for each holder is asked once for all admissions, and what is let in is written at the end: nothing else is
-- let in or released between them.
local at_once, begun = {}, {}
local function running_now(holder)
    at_once[holder] = at_once[holder] or running(holder)
    return at_once[holder]
end

local function begin(holder, amount)
    at_once[holder] = running_now(holder) + (amount or 1)
    begun[holder] = (begun[holder] or 0) + (amount or 1)
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
        local holder = '@' .. name
        at_once[holder] = at_once[holder] or running_for_another(name, limit)
        if at_once[holder] < limit then
            begin(holder)
            return {0, i - 1, 0, 0}
        end
    end
    local verdict, place, expected = wait(in_full(wanted), worker)
    return {verdict, -1, place, expected}
end

local ONE_ENDS_IN = 1000  -- of which nobody knows when

-- Under which name a workload counts that a request uses; nil where that caller holds none such for the model.
local function held_as(id, caller, model)
    local name = name_of(caller, id)
    local known = redis.call('HMGET', workload(name), 'model', 'ends')
    if known[1] == model and is_alive(holder(name, known[2])) then
        return holder(name, known[2])
    end
end

local function running_beside(own, quota)
    local held = own and redis.call('HGET', 'limits:running:' .. quota.holder, own)
    return running_now(quota.holder) - (tonumber(held) or 0)
end

-- What a quota says of one request more: a verdict, and how long until it would be another.
local function look(quota, tokens, own)
    if quota.tokens > 0 and tokens > quota.tokens then
        return 8, 0
    end
    local verdict, retry = 0, 0
    if quota.requests > 0 then
        local window = window_of(quota.holder)
        if window.kept + window.new >= quota.requests then
            verdict, retry = 2, until_one_more(window, quota.requests)
        end
    end
    if quota.tokens > 0 and tokens > 0 then
        local purse = purse_of(quota.holder)
        if purse.sum + tokens > quota.tokens then
            local wait = until_so_many(purse, tokens, quota.tokens)
            if wait > retry then
                verdict, retry = 7, wait
            end
        end
    end
    if verdict == 0 and quota.at_once > 0 and running_beside(own, quota) >= quota.at_once then
        return 3, ONE_ENDS_IN
    end
    return verdict, retry
end

-- Of all quotas the one that refuses a request for the longest.
local function worst_of(quotas, tokens, own)
    local worst, which, retry = 0, -1, 0
    for i, quota in ipairs(quotas) do
        local verdict, wait = look(quota, tokens, own)
        if verdict == 8 then
            return verdict, i - 1, 0
        end
        if verdict > 0 and wait > retry then
            worst, which, retry = verdict, i - 1, wait
        end
    end
    return worst, which, retry
end

-- The first purse that hasn't enough for a request, and why.
local function purse_refusing(claims)
    for i, claim in ipairs(claims) do
        local spent = spent_of(claim.purse)
        if not spent then
            return 10, i - 1
        end
        if spent + running_now('$' .. claim.purse) + claim.amount > claim.limit then
            return 9, i - 1
        end
    end
    return 0
end

local function claim_all(claims)
    for _, claim in ipairs(claims) do
        begin('$' .. claim.purse, claim.amount)
    end
end

-- What a workload counts for a holder is the request's from now on that uses it.
local function take_over(own, holder)
    local runs = running_now(holder)
    if own and redis.call('HDEL', 'limits:running:' .. holder, own) == 1 then
        at_once[holder] = runs - 1
    end
end

local function take_from(quota, tokens, ticket, own)
    if quota.requests > 0 then
        local window = window_of(quota.holder)
        window.new = window.new + 1
    end
    if quota.tokens > 0 and tokens > 0 then
        reserve(purse_of(quota.holder), ticket, tokens)
    end
    if quota.at_once > 0 then
        take_over(own, quota.holder)
        begin(quota.holder)
    end
end

local function with_what_is_left(verdict, quotas)
    for _, quota in ipairs(quotas) do
        local requests, tokens, runs = 0, 0, 0
        if quota.requests > 0 then
            local window = window_of(quota.holder)
            requests = math.max(0, quota.requests - window.kept - window.new)
        end
        if quota.tokens > 0 then
            tokens = math.max(0, quota.tokens - purse_of(quota.holder).sum)
        end
        if quota.at_once > 0 then
            runs = running_now(quota.holder)
        end
        local last = #verdict
        verdict[last + 1], verdict[last + 2], verdict[last + 3] = requests, tokens, runs
    end
    return verdict
end

local function decide(quotas, claims, tokens, ticket, wanted, own)
    local empty, purse = purse_refusing(claims)
    if empty > 0 then
        return with_what_is_left({empty, purse, 0, -1, 0, 0}, quotas)
    end
    local verdict, which, retry = worst_of(quotas, tokens, own)
    if verdict > 0 then
        return with_what_is_left({verdict, which, retry, -1, 0, 0}, quotas)
    end
    if bucket and bucket < 1 then
        return with_what_is_left({1, -1, math.ceil((1 - bucket) * 60000 / per_minute), -1, 0, 0}, quotas)
    end
    local place = find_place(wanted)
    if place[1] <= 4 then
        bucket = bucket and bucket - 1
        owed = owed and place[1] == 4 and owed + 1 or owed
        for _, quota in ipairs(quotas) do
            take_from(quota, tokens, ticket, own)
        end
        claim_all(claims)
    end
    return with_what_is_left({place[1], -1, place[4], place[2], place[3], place[1] == 4 and now or 0}, quotas)
end

-- For one that was admitted before.
local function decide_again(claims, wanted)
    local empty, purse = purse_refusing(claims)
    if empty > 0 then
        return {empty, purse, 0, -1, 0, 0}
    end
    local place = find_place(wanted)
    if place[1] <= 4 then
        claim_all(claims)
    end
    return {place[1], -1, place[4], place[2], place[3], 0}
end

local function take_quotas(count)
    local quotas = {}
    for i = 1, count do
        quotas[i] = {
            holder = take(), requests = tonumber(take()), tokens = tonumber(take()), at_once = tonumber(take())
        }
    end
    return quotas
end

local function take_claims()
    local claims = {}
    for i = 1, tonumber(take()) do
        claims[i] = {purse = take(), limit = tonumber(take()), amount = tonumber(take())}
    end
    return claims
end

-- The verdict on a request whose nonce can't be used up.
local function refused(used, quotas)
    if used < 0 then
        return with_what_is_left({11, -1, 0, -1, 0, 0}, quotas)
    end
    return with_what_is_left({12, -1, used, -1, 0, 0}, quotas)
end

-- How many workers live; what is held for a workload stands among them for as long as its own lease.
local function living()
    local count = 0
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', 'limits:workers', '(' .. whole(now), whole(now + lease))) do
        if string.sub(name, 1, #WORKLOADS) ~= WORKLOADS then
            count = count + 1
        end
    end
    return count
end

local verdicts = {known and tonumber(known) > now and (look_after_all and living() or 1) or 0}
for _ = 1, tonumber(take()) do
    local count, used = tonumber(take()), 0
    if count == -2 then
        used = use_up(take(), take(), take(), take())
        count = tonumber(take())
    end
    local own
    if count == -3 then
        own = held_as(take(), take(), take())
        count = tonumber(take())
    end
    if count < 0 then
        local claims = take_claims()
        verdicts[#verdicts + 1] = decide_again(claims, take_wanted())
    else
        local tokens = tonumber(take())
        local ticket = tokens > 0 and take() or ''
        local quotas, claims = take_quotas(count), take_claims()
        local wanted = take_wanted()
        verdicts[#verdicts + 1] = used == 0 and decide(quotas, claims, tokens, ticket, wanted, own)
            or refused(used, quotas)
    end
end
for holder, requests in pairs(begun) do
    hold(holder, worker, requests)
end
write_windows_down()
if bucket then
    redis.call('HSET', 'limits:global', 'tokens', tostring(bucket), 'at', now, 'owed', tostring(owed))
    redis.call('EXPIRE', 'limits:global', 120)
end
return verdicts
