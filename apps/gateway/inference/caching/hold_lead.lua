-- Keeps the leads of a worker, or ends them: only those that are still its own.
--
-- ARGV: the mark of a lead of this worker, lease (ms; 0 ends them), then the keys
for i = 3, #ARGV do
    if redis.call('GET', ARGV[i]) == ARGV[1] then
        if tonumber(ARGV[2]) > 0 then
            redis.call('PEXPIRE', ARGV[i], ARGV[2])
        else
            redis.call('DEL', ARGV[i])
        end
    end
end
