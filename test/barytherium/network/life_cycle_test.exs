defmodule Barytherium.Network.LifeCycleTest do
  # Counts descriptors of the whole VM, so nothing may run beside it.
  use Barytherium.ReceiverCase, async: false

  # What is counted must be back to where it was, however a connection ends.
  defp assert_same_descriptors(count, fun) do
    before = descriptors()
    for n <- 1..count, do: fun.(n)
    eventually(fn -> descriptors() == before end)
  end

  defp finish(receiver, peer, socket, reason) do
    assert_disconnect(reason, receiver)
    Peer.close(peer)
    Connection.close(socket)
  end

  test "300 connections leave no descriptor, whoever ends them" do
    assert_same_descriptors(300, fn n ->
      {receiver, peer, socket} = start_connected()

      case rem(n, 3) do
        0 -> Peer.close(peer)
        1 -> Connection.close(socket)
        2 -> Peer.send(peer, "GARBAGE")
      end

      reason = if rem(n, 3) == 2, do: :parse_error, else: :closed
      finish(receiver, peer, socket, reason)
    end)
  end

  test "300 connections at once leave no descriptor" do
    before = descriptors()
    connections = for _n <- 1..300, do: start_connected()
    for {_receiver, peer, _socket} <- connections, do: Peer.close(peer)

    for {receiver, _peer, _socket} <- connections do
      monitor = Process.monitor(receiver)
      assert_receive {:DOWN, ^monitor, :process, ^receiver, _reason}
      assert_receive {:"$gen_cast", {:barytherium, :disconnect, :closed}}
    end

    eventually(fn -> descriptors() == before end)
  end

  test "killed receivers leave no descriptor, at any stage" do
    Process.flag(:trap_exit, true)
    body = String.duplicate("x", 1_000_000)

    assert_same_descriptors(60, fn n ->
      {receiver, peer, socket} = if rem(n, 3) == 0, do: start_receiver(), else: start_connected()

      if rem(n, 3) == 2 do
        # Killed in a slice, or close to one.
        spawn_link(fn -> Connection.send(peer, ["MESSAGE\ncontent-length:5000000\n\n", body]) end)
      end

      Process.exit(receiver, :kill)
      assert_receive {:EXIT, ^receiver, :killed}
      Peer.close(peer)
      Connection.close(socket)
    end)
  end

  test "a listener that is gone ends the loop" do
    {socket, peer} = Peer.pair()
    {listener, monitor} = spawn_monitor(fn -> :ok end)
    assert_receive {:DOWN, ^monitor, :process, ^listener, _reason}
    {:ok, receiver} = Receiver.start_link(socket, listener, self(), self())
    Peer.send(peer, "ERROR\n\n\0")
    assert_disconnect(:closed, receiver)
    Peer.assert_closed(peer)
  end
end
