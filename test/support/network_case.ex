defmodule Barytherium.NetworkCase do
  @moduledoc "A network process and its peer, for tests in the role of the callback process."

  import ExUnit.Assertions

  alias Barytherium.{Frame, Network, Peer}
  alias Barytherium.Network.Sender

  @doc "A network that connects to a new peer: `{network, peer}`."
  def connect(callback \\ self(), opts \\ [], transport \\ :tcp) do
    listener = Peer.listen(transport)
    {:ok, network} = Network.start_link(callback, {127, 0, 0, 1}, Peer.port(listener), opts)
    {network, Peer.accept(listener, transport)}
  end

  @doc "Exchanges CONNECT and CONNECTED, for the calling callback process: `{network, sender}`."
  def connected(network, peer) do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Sender.write(sender, [%Frame{command: :connect}])
    assert {:ok, "CONNECT\n\n\0"} = Peer.recv(peer)
    Peer.send(peer, "CONNECTED\nversion:1.2\n\n\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    {network, sender}
  end
end
