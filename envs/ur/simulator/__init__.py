"""A simulated UR controller: it speaks the robot's protocols well enough for clients made for the real one.

    robot.py      arm, modes, stops, one program at a time; a cycle is `SimulatedRobot.step`
    script.py     programs: the script that ur_rtde uploads, and single motion commands
    statements.py URScript as text, as far as it is simulated
    rtde.py, dashboard.py, realtime.py    one client of each port, bytes in and bytes out; no socket
    faults.py     what can go wrong on demand, and the port that takes such commands
    server.py     the ports and the clock
    record.py     the ground truth, cycle by cycle, in a file

Where UR publishes nothing, this robot is on the strict side. A program that a stop has interrupted is gone and must
be started anew. Stops brake at 20 rad/s^2. What the joints cannot follow is a protective stop at once. Input
registers keep their values until a client writes them, also across programs. Moves along lines of space, force and
freedrive modes are not simulated: such a command ends the program and says so. Programs other than ur_rtde's may
have the statements of statements.py; of one that has others only what it writes to outputs is done, and that is told.
"""
