defmodule Barytherium.FaultProxy do
  @moduledoc """
  A TCP proxy between a client and a broker that does to the broker's bytes what networks do.
  For one connection.

  Modes:

    * `:pass` - as they come;
    * `{:delay, ms}` - that much later;
    * `:octets` - one octet in a segment;
    * `:stall` - nothing passes, in either direction, and nobody is told: also what a peer looks
      like that has vanished without FIN;
    * `{:reset_after, octets}` - so many octets more, and then a reset for the client.
  """

  alias Barytherium.Peer

  @doc "Starts a proxy for the broker at `port`: `{proxy, port}`. Ends with the calling process."
  def start!(port) do
    test = self()

    proxy =
      spawn_link(fn ->
        listener = Peer.listen(:tcp)
        send(test, {self(), Peer.port(listener)})
        client = Peer.accept(listener)
        {:ok, broker} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: :once])
        options = [active: :once, nodelay: true]
        :ok = :inet.setopts(client, options)
        loop(%{client: client, broker: broker, mode: :pass, stalled: []})
      end)

    receive do
      {^proxy, port} -> {proxy, port}
    end
  end

  @doc "Sets the mode, from the next octet on."
  def set(proxy, mode) do
    send(proxy, {:mode, mode, self()})

    receive do
      {^proxy, :set} -> :ok
    end
  end

  defp loop(%{client: client, broker: broker} = state) do
    receive do
      {:mode, mode, from} ->
        send(from, {self(), :set})
        %{state | mode: mode} |> release() |> loop()

      {:tcp, _socket, _bytes} = arrived ->
        arrived |> pass(state) |> loop()

      {:tcp_closed, ^client} ->
        :gen_tcp.close(broker)

      {:tcp_closed, ^broker} ->
        :gen_tcp.close(client)

      {:tcp_error, _socket, _reason} ->
        loop(state)
    end
  end

  # What was held back goes first.
  defp release(%{mode: :stall} = state), do: state

  defp release(%{stalled: stalled} = state),
    do: stalled |> Enum.reverse() |> Enum.reduce(%{state | stalled: []}, &pass/2)

  defp pass(arrived, %{mode: :stall} = state), do: %{state | stalled: [arrived | state.stalled]}

  defp pass({:tcp, client, bytes}, %{client: client} = state) do
    :gen_tcp.send(state.broker, bytes)
    :inet.setopts(client, active: :once)
    state
  end

  defp pass({:tcp, broker, bytes}, %{broker: broker} = state) do
    state = to_client(state.mode, bytes, state)
    :inet.setopts(broker, active: :once)
    state
  end

  defp to_client({:delay, time}, bytes, state) do
    Process.sleep(time)
    to_client(:pass, bytes, state)
  end

  defp to_client(:octets, bytes, state) do
    for <<octet <- bytes>>, do: :gen_tcp.send(state.client, <<octet>>)
    state
  end

  defp to_client({:reset_after, octets}, bytes, state) when byte_size(bytes) > octets do
    :gen_tcp.send(state.client, binary_part(bytes, 0, octets))
    # The client is to have read them: a reset discards what it has not.
    await_read(state.client)
    Peer.reset(state.client)
    state
  end

  defp to_client({:reset_after, octets}, bytes, state) do
    :gen_tcp.send(state.client, bytes)
    %{state | mode: {:reset_after, octets - byte_size(bytes)}}
  end

  defp to_client(_pass, bytes, state) do
    :gen_tcp.send(state.client, bytes)
    state
  end

  # The other end has no way to tell; on the loopback interface this is long.
  defp await_read(_client), do: Process.sleep(100)
end
