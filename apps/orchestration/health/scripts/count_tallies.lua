-- Adds good and bad answers that a worker has counted, and says what all workers have.
--
-- ARGV: milliseconds of a stretch of time, then of each server: its id, good answers, bad ones (less than none: forgiven)
-- Gives: of each server that has bad ones in this stretch and the one before: its id, good answers, bad ones
--
-- fleet:tallies  hash of server → number of a stretch, good and bad answers in it, good and bad ones in the one before
local clock, key = redis.call('TIME'), 'fleet:tallies'
local stretch = math.floor((clock[1] * 1000 + clock[2] / 1000) / ARGV[1])

local function as_of_now(raw)
    local at, good, bad, good_before, bad_before = string.match(raw, '(%S+) (%S+) (%S+) (%S+) (%S+)')
    if tonumber(at) == stretch then
        return tonumber(good), tonumber(bad), tonumber(good_before), tonumber(bad_before)
    elseif tonumber(at) == stretch - 1 then
        return 0, 0, tonumber(good), tonumber(bad)
    end
    return 0, 0, 0, 0
end

for i = 2, #ARGV, 3 do
    local good, bad, good_before, bad_before = as_of_now(redis.call('HGET', key, ARGV[i]) or '0 0 0 0 0')
    local now = {stretch, good + ARGV[i + 1], bad + ARGV[i + 2], good_before, bad_before}
    redis.call('HSET', key, ARGV[i], table.concat(now, ' '))
end
if #ARGV > 1 then
    redis.call('PEXPIRE', key, 2 * ARGV[1])
end

local kept, told = redis.call('HGETALL', key), {}
for i = 1, #kept, 2 do
    local good, bad, good_before, bad_before = as_of_now(kept[i + 1])
    if bad + bad_before > 0 then
        told[#told + 1] = kept[i]
        told[#told + 1] = good + good_before
        told[#told + 1] = bad + bad_before
    elseif good + good_before == 0 then
        redis.call('HDEL', key, kept[i])
    end
end
return told
