defmodule Barytherium.FaultProxy do
  @moduledoc """
  A TCP proxy between clients and a broker. It imitates what a bad network does to the broker's bytes.

  Modes:

    * `:pass` - passes them on at once;
    * `{:delay, ms}` - passes them on after a delay;
    * `:bytes` - passes them on byte by byte, each in a segment of its own;
    * `:stall` - passes nothing in either direction, and closes nothing. A peer that vanished without
      FIN looks the same;
    * `:until_closed` - passes them on when the broker has closed, all in one write;
    * `{:reset_after, bytes}` - passes on that many more bytes, and then resets the client's
      connection. Connections that are made later are not concerned.
  """

  alias Barytherium.Peer

  @doc "Starts a proxy for the broker at `port`, linked to the caller. Returns `{proxy, port}`."
  def start!(port) do
    test = self()

    proxy =
      spawn_link(fn ->
        listener = Peer.listen(:tcp)
        send(test, {self(), Peer.port(listener)})
        proxy = self()
        spawn_link(fn -> accept(listener, port, proxy) end)
        manage(:pass, [])
      end)

    receive do
      {^proxy, port} -> {proxy, port}
    end
  end

  @doc "Sets the mode for all further bytes."
  def set(proxy, mode) do
    send(proxy, {:mode, mode, self()})

    receive do
      {^proxy, :set} -> :ok
    end
  end

  defp accept(listener, port, proxy) do
    client = Peer.accept(listener)
    connection = spawn_link(fn -> await_start(port) end)
    :ok = :gen_tcp.controlling_process(client, connection)
    send(proxy, {:accepted, connection, client})
    accept(listener, port, proxy)
  end

  defp manage(mode, connections) do
    receive do
      {:accepted, connection, client} ->
        Process.monitor(connection)
        send(connection, {:start, client, mode})
        manage(mode, [connection | connections])

      {:mode, mode, from} ->
        for connection <- connections, do: set_connection(connection, mode)
        send(from, {self(), :set})
        manage(if(match?({:reset_after, _bytes}, mode), do: :pass, else: mode), connections)

      {:DOWN, _monitor, :process, connection, _reason} ->
        manage(mode, List.delete(connections, connection))
    end
  end

  defp set_connection(connection, mode) do
    # A monitor of its own, because the message of the other one is still to be handled.
    monitor = Process.monitor(connection)
    send(connection, {:mode, mode, self()})

    receive do
      {^connection, :set} -> :ok
      {:DOWN, ^monitor, :process, ^connection, _reason} -> :ok
    end

    Process.demonitor(monitor, [:flush])
  end

  defp await_start(port) do
    receive do
      {:start, client, mode} ->
        case :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: :once]) do
          {:ok, broker} ->
            :inet.setopts(client, active: :once, nodelay: true)
            loop(%{client: client, broker: broker, mode: mode, stalled: [], held: []})

          {:error, _reason} ->
            :gen_tcp.close(client)
        end
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
        :gen_tcp.send(client, Enum.reverse(state.held))
        :gen_tcp.close(client)

      {:tcp_error, _socket, _reason} ->
        loop(state)
    end
  end

  # What was held back is passed on first.
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

  defp to_client(:until_closed, bytes, state), do: %{state | held: [bytes | state.held]}

  defp to_client(:bytes, bytes, state) do
    for <<byte <- bytes>>, do: :gen_tcp.send(state.client, <<byte>>)
    state
  end

  defp to_client({:reset_after, left}, bytes, state) when byte_size(bytes) > left do
    :gen_tcp.send(state.client, binary_part(bytes, 0, left))
    # A reset discards what the client has not read yet.
    await_read(state.client)
    Peer.reset(state.client)
    # Who closes a socket itself is not told. The broker's connection ends too.
    send(self(), {:tcp_closed, state.client})
    state
  end

  defp to_client({:reset_after, left}, bytes, state) do
    :gen_tcp.send(state.client, bytes)
    %{state | mode: {:reset_after, left - byte_size(bytes)}}
  end

  defp to_client(_pass, bytes, state) do
    :gen_tcp.send(state.client, bytes)
    state
  end

  # Nothing tells when the client has read. On the loopback interface this is long enough.
  defp await_read(_client), do: Process.sleep(100)
end
