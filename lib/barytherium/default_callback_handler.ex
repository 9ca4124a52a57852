defmodule Barytherium.DefaultCallbackHandler do
  @moduledoc """
  An example of a callback process, to read and to try things with: it connects, sends CONNECT
  and then the given frames, logs what arrives and acknowledges it.

      Barytherium.DefaultCallbackHandler.start_link(
        "localhost",
        61613,
        "/",
        [{"login", "guest"}, {"passcode", "guest"}, {"heart-beat", "5000,5000"}],
        [
          %Barytherium.Frame{
            command: :subscribe,
            headers: [{"id", "0"}, {"destination", "/queue/a"}, {"ack", "client"}]
          }
        ]
      )
  """
  use GenServer, restart: :temporary

  require Logger

  alias Barytherium.{Connection, Frame, Network}
  alias Barytherium.Network.Sender

  @doc """
  Connects to `host` and `port`.

  `virtual_host` is CONNECT's `host` header, `connect_headers` are further ones, and
  `connected_frames` are written once CONNECTED has arrived. `opts` are those of
  `Barytherium.Network.start_link/4`, `link_opts` those of `GenServer.start_link/3`.
  """
  @spec start_link(
          Connection.host(),
          :inet.port_number(),
          String.t(),
          Frame.frame_headers(),
          [Frame.t()],
          [term()],
          GenServer.options()
        ) :: GenServer.on_start()
  def start_link(
        host,
        port,
        virtual_host,
        connect_headers \\ [],
        connected_frames \\ [],
        opts \\ [],
        link_opts \\ []
      ) do
    state = %{
      host: host,
      port: port,
      virtual_host: virtual_host,
      connect_headers: connect_headers,
      connected_frames: connected_frames,
      opts: opts
    }

    GenServer.start_link(__MODULE__, state, link_opts)
  end

  @impl true
  def init(%{host: host, port: port, opts: opts} = state) do
    {:ok, network_pid} = Network.start_link(self(), host, port, opts)
    {:ok, Map.put(state, :network_pid, network_pid)}
  end

  @impl true
  def handle_cast({:barytherium, :connect, {:ok, sender_pid}}, state) do
    Logger.info("Connected to #{inspect(state.host)}:#{state.port}")
    headers = [{"accept-version", "1.0,1.1,1.2"}, {"host", state.virtual_host}]
    connect = %Frame{command: :connect, headers: headers ++ state.connect_headers}
    Sender.write(sender_pid, [connect])
    {:noreply, state}
  end

  def handle_cast({:barytherium, :connect, {:error, reason}}, state) do
    Logger.error("No connection to #{inspect(state.host)}:#{state.port}: #{reason}")
    {:stop, {:shutdown, reason}, state}
  end

  def handle_cast({:barytherium, :frames, {[%Frame{command: :connected}], sender_pid}}, state) do
    Logger.info("The server has accepted the connection")
    Sender.write(sender_pid, state.connected_frames)
    {:noreply, state}
  end

  def handle_cast({:barytherium, :frames, {frames, sender_pid}}, state) do
    handle_frame(frames, sender_pid)
    {:noreply, state}
  end

  def handle_cast({:barytherium, :disconnect, reason}, state) do
    Logger.error("Disconnected: #{reason}")
    {:stop, {:shutdown, reason}, state}
  end

  @doc "Logs a frame, or each of several, and acknowledges it if it asks for that."
  @spec handle_frame(Frame.t() | [Frame.t()], pid()) :: :ok
  def handle_frame(frames, sender_pid) when is_list(frames),
    do: Enum.each(frames, &handle_frame(&1, sender_pid))

  def handle_frame(%Frame{headers: headers} = frame, sender_pid) do
    Logger.info("Received #{inspect(frame)}")

    case Frame.headers_to_map(headers) do
      %{"ack" => id} -> Sender.write(sender_pid, [%Frame{command: :ack, headers: [{"id", id}]}])
      _no_acknowledgement_wanted -> :ok
    end
  end
end
