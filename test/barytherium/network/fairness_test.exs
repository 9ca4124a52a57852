defmodule Barytherium.Network.FairnessTest do
  use Barytherium.ReceiverCase, async: false

  alias Barytherium.Native

  # More connections than dirty I/O threads.
  @floods 2 * :erlang.system_info(:dirty_io_schedulers)
  @frames :binary.copy("MESSAGE\ndestination:/topic/a\n\n0123456789\0", 2_000)

  # Takes all frames, and reports their number when asked.
  defp count(frames \\ 0) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {more, _sender}}} ->
        count(frames + length(more))

      {:report, from} ->
        send(from, {:frames, frames})
        count(frames)
    end
  end

  defp flood do
    {socket, peer} = Peer.pair()
    listener = spawn_link(&count/0)
    {:ok, receiver} = Receiver.start_link(socket, listener, self(), self())
    Peer.send(peer, connected_bytes())
    reply_heart_beats(0)
    pump = spawn_link(fn -> pump(peer) end)
    %{listener: listener, receiver: receiver, pump: pump, peer: peer}
  end

  defp pump(peer), do: Connection.send(peer, @frames) == :ok && pump(peer)

  defp frames(flood) do
    send(flood.listener, {:report, self()})
    assert_receive {:frames, frames}, 10_000
    frames
  end

  # Waits until each listener got 100,000 more frames, and checks that none of them got far fewer than
  # the mean.
  defp await_more(floods) do
    before = Enum.map(floods, &frames/1)
    more = fn -> floods |> Enum.zip(before) |> Enum.map(fn {one, n} -> frames(one) - n end) end
    eventually(fn -> Enum.min(more.()) > 100_000 end, 1_000)
    more = more.()
    assert Enum.min(more) > 0.25 * Enum.sum(more) / length(more), inspect(more)
  end

  test "who waits for the network's answer to CONNECTED holds no turn" do
    {socket, peer} = Peer.pair()
    {:ok, _receiver} = Receiver.start_link(socket, self(), self(), self())
    # A burst, which is read in turns.
    Peer.send(peer, [:binary.copy("\n", 1_000_000), connected_bytes()])
    assert_receive {:"$gen_call", from, {:connected_frame, _frame}}
    assert Native.live_turns() == 0
    GenServer.reply(from, {0, 0})
    Peer.close(peer)
  end

  test "floods block neither each other, nor a quiet connection, nor the VM's file operations" do
    {_receiver, peer, _socket} = start_connected()
    floods = for _n <- 1..@floods, do: flood()
    await_more(floods)

    for n <- 1..20 do
      Peer.send(peer, "MESSAGE\nn:#{n}\n\n\0")
      assert_receive {:"$gen_cast", {:barytherium, :frames, {[frame], _sender}}}, 10_000
      assert frame.headers == [{"n", "#{n}"}]
      assert {:ok, _bytes} = File.read("mix.exs")
    end

    await_more(floods)
  end

  # A turn that is never ended must not hold up other connections.
  test "suspended connections do not stop the others" do
    Process.flag(:trap_exit, true)
    floods = for _n <- 1..(System.schedulers_online() + 2), do: flood()
    [last | suspended] = floods
    await_more(floods)
    for flood <- suspended, do: :sys.suspend(flood.receiver)
    await_more([last])
    # The suspended ones have to find out by themselves that all turns are free.
    Process.exit(last.pump, :kill)
    eventually(fn -> Native.live_turns() <= length(suspended) end)
    for flood <- suspended, do: :sys.resume(flood.receiver)
    await_more(suspended)
  end

  test "a large frame of many headers and escapes arrives beside floods, which go on" do
    floods = for _n <- 1..@floods, do: flood()
    {_receiver, peer, _socket} = start_connected(:tcp, max_header_line: 100_000)
    line = String.duplicate("\\\\", 30_000)
    Peer.send(peer, ["MESSAGE\n", for(n <- 1..15, do: "h#{n}:#{line}\n"), "\nbody\0"])
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[frame], _sender}}}, 10_000
    assert %Frame{body: "body", headers: headers} = frame
    assert length(headers) == 15
    assert Enum.all?(headers, fn {_name, value} -> value == String.duplicate("\\", 30_000) end)
    await_more(floods)
  end

  test "a connection that ends gives back its turn or its place in the queue" do
    Process.flag(:trap_exit, true)
    eventually(fn -> Native.live_turns() == 0 end)
    floods = for _n <- 1..@floods, do: flood()
    await_more(floods)
    eventually(fn -> Native.live_turns() > System.schedulers_online() end)

    for {flood, n} <- Enum.with_index(floods) do
      case rem(n, 3) do
        0 -> Process.exit(flood.receiver, :kill)
        1 -> Process.exit(flood.listener, :kill)
        2 -> Process.exit(flood.pump, :kill) && Peer.close(flood.peer)
      end
    end

    eventually(fn -> Native.live_turns() == 0 end)
  end
end
