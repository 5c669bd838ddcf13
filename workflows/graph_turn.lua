-- Whether a step of a graph that is about to begin may: '0' when its run has ended badly. Should the run be opened again, the
-- step is queued again. Stands after graph.lua.
--   KEYS[1]  the graph     KEYS[2]  its set of steps that may start     KEYS[3]  the run
--   ARGV[1]  the step's number     ARGV[2]  seconds a graph is kept whose run has ended
if not ended_badly(KEYS[3]) then return 1 end
if redis.call('EXISTS', KEYS[1]) == 1 then
    redis.call('HSET', KEYS[1], 'begun', '0')
    redis.call('SADD', KEYS[2], ARGV[1])
    redis.call('EXPIRE', KEYS[2], ARGV[2])
end
return 0
