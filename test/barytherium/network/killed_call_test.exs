defmodule Barytherium.Network.KilledCallTest do
  @moduledoc """
  A process that is killed while it runs a native call on a dirty thread. The call goes on to its end, but
  the VM sends nothing for it any more.
  """
  use Barytherium.ReceiverCase, async: false

  alias Barytherium.Native

  @moduletag capture_log: true

  # Lists in the mailbox of the listener at which a connection pauses.
  @mark 4

  # Takes nothing until it is told to take everything.
  defp listener do
    spawn_link(fn ->
      receive do: (:drain -> drain())
      Process.sleep(:infinity)
    end)
  end

  defp drain do
    receive do
      _any -> drain()
    after
      0 -> :ok
    end
  end

  defp queued(pid), do: pid |> Process.info(:message_queue_len) |> elem(1)

  # A connection without a socket that has this many frames to deliver, in a process of its own. It calls
  # what `run/2` tells it to.
  defp connection(listener, frames) do
    test = self()
    pending = :binary.copy("MESSAGE\n\nx\0", frames)

    options = native_options(@mark)

    pid =
      spawn(fn ->
        recipients = {listener, test}
        stats = Native.new_stats()

        {:ok, connection} =
          Native.open(nil, pending, Frame.parse_state(), options, recipients, stats)

        calls(test, connection, recipients)
      end)

    on_exit(fn -> Process.exit(pid, :kill) end)
    pid
  end

  defp calls(test, connection, recipients) do
    receive do: ({:run, call} -> send(test, {:ran, self(), call.(connection, recipients)}))
    calls(test, connection, recipients)
  end

  defp run(pid, call) do
    send(pid, {:run, call})
    assert_receive {:ran, ^pid, result}
    result
  end

  # Delivers until the listener is behind, and waits then. Returns how long at most.
  defp fill(pid, listener) do
    with {:look, ^listener} <- run(pid, &Native.feed_dirty(&1, "", &2)) do
      queued = queued(listener)
      {:await_room, time} = run(pid, &Native.looked(&1, queued, &2))
      time
    else
      {:await_room, time} -> time
    end
  end

  test "holds up no other connection to its listener" do
    listener = listener()
    # Two million frames take about a second.
    first = connection(listener, 2_000_000)
    assert fill(first, listener) == 1
    second = connection(listener, 1_000)
    time = fill(second, listener)
    assert time in 1..1_000

    # It delivers everything, however long the mailbox is.
    filled = queued(listener)
    monitor = Process.monitor(first)
    send(first, {:run, &Native.disconnect(&1, :closed, &2)})
    eventually(fn -> queued(listener) > filled end)
    Process.exit(first, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^first, :killed}
    # The first one leaves at the end of its call.
    eventually(fn -> Native.live_connections() <= 1 end, 1_000)
    refute_received {:ran, ^first, _step}

    send(listener, :drain)
    eventually(fn -> queued(listener) == 0 end)
    assert run(second, &Native.poll_room/2) == {:look, listener}
    assert run(second, &Native.looked(&1, 0, &2)) == :read_inline
  end

  # Making the terms of this many headers takes some tenths of a second.
  @headers 1_000_000

  test "closes its connection, also if the socket has another owner" do
    Process.flag(:trap_exit, true)
    sink = spawn_link(fn -> Process.sleep(:infinity) end)
    {socket, peer} = Peer.pair()
    opts = [max_headers: @headers]
    {:ok, receiver} = Receiver.start_link(socket, sink, self(), self(), opts)
    Peer.send(peer, connected_bytes())
    reply_heart_beats(0)
    Peer.send(peer, "MESSAGE\n" <> :binary.copy("a:b\n", @headers))
    eventually(fn -> match?({:await_input, _loop}, :sys.get_state(receiver)) end)
    :erlang.trace(receiver, true, [:call])
    :erlang.trace_pattern({Native, :read_dirty, 3}, true, [])
    Peer.send(peer, "\n\0")
    assert_receive {:trace, ^receiver, :call, {Native, :read_dirty, _arguments}}
    # It is in the call, and most likely will be for a while.
    Process.sleep(50)
    Process.exit(receiver, :kill)
    # The socket is still ours, and open.
    assert {:error, :closed} = Connection.recv(peer, 0, 5_000)
    Connection.close(socket)
  end
end
