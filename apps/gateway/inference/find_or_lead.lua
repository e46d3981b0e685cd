-- Looks answers up for all requests of one turn; where there is none, gives the first who asks the lead.
--
-- ARGV: leader's name, lease (ms), then the keys
-- Gives for each key: the entry; 1 if the asker leads now; 0 if somebody else does and the entry is still to come
local found = {}
for i = 3, #ARGV do
    local entry = redis.call('GET', ARGV[i])
    if entry then
        found[#found + 1] = entry
    elseif redis.call('SET', ARGV[i] .. ':lead', ARGV[1], 'NX', 'PX', ARGV[2]) then
        found[#found + 1] = 1
    else
        found[#found + 1] = 0
    end
end
return found
