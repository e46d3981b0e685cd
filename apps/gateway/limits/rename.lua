-- Gives a worker another name, with all that it runs: of what is counted under the old ones it isn't certain any more.
-- In one go, so that nobody takes the new one for dead. What is granted to the old ones is void, and who listens for it is
-- let go.
--
-- ARGV: new name (empty: it ends), lease (ms), number of old names, then these; then for each holder: name, requests
local new, lease = take(), tonumber(take())
if new ~= '' then
    redis.call('ZADD', 'limits:workers', now + lease, new)
end
for _ = 1, tonumber(take()) do
    local old = take()
    redis.call('ZADD', 'limits:workers', now, old)
    redis.call('RPUSH', 'limits:grants:' .. old, '')
    redis.call('PEXPIRE', 'limits:grants:' .. old, 1000)
end
while position < #ARGV do
    local holder, requests = take(), tonumber(take())
    hold(holder, new, requests)
end
