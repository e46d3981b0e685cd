-- Decides for all requests of one turn of a worker, in one go, by Redis's clock.
--
-- ARGV: worker, lease (ms), global requests a minute, global burst,
--       number of releases, then for each: client, count
--       number of admissions, then for each: client, requests a minute, concurrent    (0 is no limit)
-- Gives: 1 if the worker was known to be alive, else 0; then for each admission:
--        {verdict, remaining, reset (ms), retry (ms), running now};
--        verdict: 0 admitted, 1 global, 2 requests a minute, 3 concurrent
--
-- All keys begin with limits:
-- window:CLIENT   list of the times (ms) at which requests were admitted in the last 60 s: an exact sliding window
-- running:CLIENT  hash of worker → requests it runs now; a worker that is silent for a lease is dead and counts nothing
-- workers         sorted set of worker → when its lease ends
-- global          hash of tokens, at: the bucket
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local position = 0
local function take()
    position = position + 1
    return ARGV[position]
end

local worker, lease = take(), tonumber(take())
local per_minute, burst = tonumber(take()), tonumber(take())
local known = redis.call('ZSCORE', 'limits:workers', worker)
redis.call('ZADD', 'limits:workers', now + lease, worker)
local alive = {[worker] = true}

local function is_alive(name)
    if alive[name] == nil then
        local ends = redis.call('ZSCORE', 'limits:workers', name)
        alive[name] = ends and tonumber(ends) > now or false
    end
    return alive[name]
end

for _ = 1, tonumber(take()) do
    local client, count = take(), tonumber(take())
    local key = 'limits:running:' .. client
    if redis.call('HINCRBY', key, worker, -count) <= 0 then
        redis.call('HDEL', key, worker)
    end
end

local function running(client)
    local total, fields = 0, redis.call('HGETALL', 'limits:running:' .. client)
    for i = 1, #fields, 2 do
        if is_alive(fields[i]) then
            total = total + tonumber(fields[i + 1])
        else
            redis.call('HDEL', 'limits:running:' .. client, fields[i])
            redis.call('ZREM', 'limits:workers', fields[i])
        end
    end
    return total
end

local tokens
if per_minute > 0 and burst > 0 then
    local bucket = redis.call('HMGET', 'limits:global', 'tokens', 'at')
    tokens = tonumber(bucket[1] or burst)
    local elapsed = math.max(0, now - tonumber(bucket[2] or now))
    tokens = math.min(burst, tokens + elapsed * per_minute / 60000)
end

local function decide(client, limit, concurrent)
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
            return {2, 0, until_free, until_free, 0}
        end
    end
    local at_once = concurrent > 0 and running(client) or 0
    if concurrent > 0 and at_once >= concurrent then
        return {3, math.max(0, limit - used), 0, 1000, at_once}
    end
    if tokens and tokens < 1 then
        return {1, math.max(0, limit - used), 0, math.ceil((1 - tokens) * 60000 / per_minute), 0}
    end
    if tokens then
        tokens = tokens - 1
    end
    if limit > 0 then
        redis.call('RPUSH', window, now)
        redis.call('PEXPIRE', window, 61000)
    end
    if concurrent > 0 then
        redis.call('HINCRBY', 'limits:running:' .. client, worker, 1)
        redis.call('EXPIRE', 'limits:running:' .. client, 7200)
    end
    return {0, limit - used - 1, 60000, 0, at_once + 1}
end

local verdicts = {known and tonumber(known) > now and 1 or 0}
for _ = 1, tonumber(take()) do
    local client, limit, concurrent = take(), tonumber(take()), tonumber(take())
    verdicts[#verdicts + 1] = decide(client, limit, concurrent)
end
if tokens then
    redis.call('HSET', 'limits:global', 'tokens', tostring(tokens), 'at', now)
    redis.call('EXPIRE', 'limits:global', 120)
end
return verdicts
