-- Nonces of signed requests, and how many a key brings. Included before the scripts that call this.
--
-- access:nonce:KEY:NONCE  is there for as long as what was signed with it could come again
-- access:nonces:KEY       how many new ones the key has brought in the half hour that began with the first of them
local HALF_AN_HOUR = 1800

-- Uses up a nonce of a key that may bring so many new ones. Gives 0; or -1, where it was used before; or how long until
-- the key may bring one more (ms): then it is not remembered, nor may anything come of the request.
local function use_up(key, nonce, seconds, most)
    local name, brought = 'access:nonce:' .. key .. ':' .. nonce, 'access:nonces:' .. key
    if not redis.call('SET', name, 1, 'NX', 'EX', seconds) then
        return -1
    end
    local count = redis.call('INCR', brought)
    if count == 1 then
        redis.call('EXPIRE', brought, HALF_AN_HOUR)
    elseif count > tonumber(most) then
        redis.call('DEL', name)
        return math.max(1, redis.call('PTTL', brought))
    end
    return 0
end
