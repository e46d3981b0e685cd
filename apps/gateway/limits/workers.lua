-- Who lives and what it runs, by Redis's clock. Included before the scripts that call these functions.
--
-- limits:workers         sorted set of worker → when its lease ends; the ended ones go when `sweep.lua` has swept
-- limits:running:HOLDER  hash of worker → requests it runs now, for a client or an @SERVER, or what these may take out of
--                        a $PURSE; a worker that is silent for a lease is dead and counts nothing
local RUNNING_KEPT = 7200
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local position = 0
local function take()
    position = position + 1
    return ARGV[position]
end

local alive = {}
local function is_alive(name)
    if alive[name] == nil then
        local ends = redis.call('ZSCORE', 'limits:workers', name)
        alive[name] = ends and tonumber(ends) > now or false
    end
    return alive[name]
end

local function running(holder)
    local total, fields = 0, redis.call('HGETALL', 'limits:running:' .. holder)
    for i = 1, #fields, 2 do
        if is_alive(fields[i]) then
            total = total + tonumber(fields[i + 1])
        else
            redis.call('HDEL', 'limits:running:' .. holder, fields[i])
        end
    end
    return total
end

-- An amount as commands take it: Redis would write 10^9 as 1e+9, and Lua less nothing as -0.
local function whole(amount)
    return string.format('%.0f', amount + 0)
end

local function hold(holder, worker, requests)
    redis.call('HINCRBY', 'limits:running:' .. holder, worker, whole(requests or 1))
    redis.call('EXPIRE', 'limits:running:' .. holder, RUNNING_KEPT)
end
