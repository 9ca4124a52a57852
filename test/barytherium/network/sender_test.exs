defmodule Barytherium.Network.SenderTest do
  use ExUnit.Case, async: true

  import Barytherium.NetworkCase
  import Barytherium.ReceiverCase, only: [eventually: 1]

  alias Barytherium.{Connection, Frame, Network, Peer}
  alias Barytherium.Network.Sender

  @moduletag capture_log: true

  # A connection whose peer reads only when it is told to, after so much was written that the next
  # writes wait.
  defp blocked(opts) do
    {network, peer} = connect(self(), opts)
    {network, sender} = connected(network, peer)
    eventually(fn -> :sys.get_state(network).is_agreed end)
    Sender.write(sender, [%Frame{command: :send, body: String.duplicate("x", 20_000_000)}])
    # It has gone to the writer.
    eventually(fn -> Network.stats(network).frames_written == 2 end)
    {network, sender, peer}
  end

  test "each caller that waits for a failed write gets its reason" do
    {_network, sender, peer} = blocked(send_timeout: 1_000)
    write = fn n -> Sender.write(sender, [%Frame{command: :ack, headers: [{"id", n}]}], :sync) end
    callers = for n <- 1..10_000, do: Task.async(fn -> write.(n) end)
    results = Task.await_many(callers, 20_000)
    assert Enum.frequencies(results) == %{{:error, :timeout} => 10_000}
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, :timeout}}
    Peer.close(peer)
  end

  test "a write that is larger than the send queue is sent before the end" do
    {network, sender, peer} = blocked(max_send_queue: 1_000_000)

    large = %Frame{
      command: :send,
      headers: [{"n", "large"}],
      body: String.duplicate("x", 2_000_000)
    }

    Sender.write(sender, [large])
    eventually(fn -> Network.stats(network).bytes_waiting > 2_000_000 end)
    closing = Task.async(fn -> Network.close(network, 5_000) end)
    reading = Task.async(fn -> read_until_disconnect(peer, "") end)
    read = Task.await(reading)
    assert read =~ "n:large"
    assert read =~ "DISCONNECT"
    Peer.close(peer)
    assert Task.await(closing) == :ok
  end

  defp read_until_disconnect(peer, read) do
    if read =~ "DISCONNECT" do
      read
    else
      {:ok, data} = Connection.recv(peer, 0, 5_000)
      # The body is of no interest, and searching it again would take long.
      read_until_disconnect(peer, String.replace(read <> data, ~r/x{100,}/, "xx"))
    end
  end

  test "writes that were accepted before CONNECTED are sent, although escapes make them larger" do
    {_network, peer} = connect(self(), max_send_queue: 1_000_000)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Sender.write(sender, [%Frame{command: :connect}])
    colons = String.duplicate(":", 100_000)

    for n <- 1..9,
        do: Sender.write(sender, [%Frame{command: :send, headers: [{"n#{n}", colons}]}])

    # All of them are held.
    :sys.get_state(sender)
    Peer.send(peer, "CONNECTED\nversion:1.2\n\n\0")
    reading = Task.async(fn -> Peer.read_all(peer) end)
    assert :ok = Sender.write(sender, [%Frame{command: :ack}], :sync)
    GenServer.stop(sender)
    {read, _reason} = Task.await(reading)
    for n <- 1..9, do: assert(read =~ "n#{n}:" <> String.duplicate("\\c", 100_000))
  end

  test "a stray cast or call neither ends the sender nor shows what waits" do
    secret = "hunter2"

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        {_network, sender, peer} = blocked([])
        Sender.write(sender, [%Frame{command: :send, body: secret}])
        GenServer.cast(sender, :stray)
        send(sender, {:"$gen_call", {self(), make_ref()}, :stray})
        assert %{failed: nil} = :sys.get_state(sender)
        Peer.close(peer)
      end)

    refute log =~ secret
  end

  test "writes without frames wait for those before them, and are sent as nothing" do
    {_network, sender, peer} = blocked([])
    for _n <- 1..100_000, do: Sender.write(sender, [])
    reading = Task.async(fn -> Peer.read_all(peer) end)
    assert :ok = Sender.write(sender, [%Frame{command: :ack}], :sync)
    assert :ok = Sender.write(sender, [], :sync)
    GenServer.stop(sender)
    {read, _reason} = Task.await(reading)
    assert String.ends_with?(read, "xxx\0ACK\n\n\0")
  end
end
