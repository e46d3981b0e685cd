-- Gives a worker another name, with all that it runs: of what is counted under the old one it isn't certain any more.
-- In one go, so that nobody takes the new one for dead. It is worth nothing any more what is granted to the old one, and
-- who listens for that is let go.
--
-- ARGV: old name, new name, lease (ms), then for each holder: name, requests
local old, new, lease = take(), take(), tonumber(take())
redis.call('ZADD', 'limits:workers', 0, old, now + lease, new)
while position < #ARGV do
    local holder, requests = take(), tonumber(take())
    hold(holder, new, requests)
end
redis.call('RPUSH', 'limits:grants:' .. old, '')
redis.call('PEXPIRE', 'limits:grants:' .. old, 1000)
