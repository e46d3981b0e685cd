-- What may be spent in a period. Included before the scripts that call these functions.
--
-- PURSE is what a budget bounds in one period: of whose, which, from when on, tokens or money in billionths.
--
-- limits:spent:PURSE     what has been spent; where it is missing PostgreSQL knows
-- limits:running:$PURSE  hash of worker → what its requests that run may take out at most
local purse_holds = {}

-- Nil where it isn't known here.
local function spent_of(name)
    if purse_holds[name] == nil then
        purse_holds[name] = tonumber(redis.call('GET', 'limits:spent:' .. name) or false) or false
    end
    return purse_holds[name] or nil
end

-- What nobody has asked for since it was forgotten stays so: whoever asks begins with what PostgreSQL knows.
local function charge(name, amount)
    if redis.call('EXISTS', 'limits:spent:' .. name) == 1 then
        redis.call('INCRBY', 'limits:spent:' .. name, amount)
    end
end
