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
          [Connection.option()],
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
    headers = [{"accept-version", "1.0,1.1,1.2"}, {"host", virtual_host} | connect_headers]

    state = %{
      host: host,
      port: port,
      # In a function: states are shown in logs, and these may hold a passcode.
      connect_headers: fn -> headers end,
      connected_frames: connected_frames,
      version: "1.0"
    }

    GenServer.start_link(__MODULE__, {state, opts}, link_opts)
  end

  @doc "A child that starts with these arguments of `start_link/7`, as a tuple or a list."
  @spec child_spec(tuple() | list()) :: Supervisor.child_spec()
  def child_spec(args) do
    args = if is_tuple(args), do: Tuple.to_list(args), else: args
    # In a function: a supervisor shows what it starts in its reports.
    %{super([]) | start: {__MODULE__, :start_child, [fn -> args end]}}
  end

  @doc false
  @spec start_child((() -> list())) :: GenServer.on_start()
  def start_child(args), do: apply(__MODULE__, :start_link, args.())

  @impl true
  def init({%{host: host, port: port} = state, opts}) do
    {:ok, network_pid} = Network.start_link(self(), host, port, opts)
    {:ok, Map.put(state, :network_pid, network_pid)}
  end

  @impl true
  def handle_cast({:barytherium, :connect, {:ok, sender_pid}}, state) do
    Logger.info("Connected to #{inspect(state.host)}:#{state.port}")
    Sender.write(sender_pid, [%Frame{command: :connect, headers: state.connect_headers.()}])
    {:noreply, state}
  end

  def handle_cast({:barytherium, :connect, {:error, reason}}, state) do
    Logger.error("No connection to #{inspect(state.host)}:#{state.port}: #{reason}")
    {:stop, {:shutdown, reason}, state}
  end

  def handle_cast({:barytherium, :frames, {[%Frame{command: :connected} = frame], sender}}, state) do
    Logger.info("The server has accepted the connection")
    Sender.write(sender, state.connected_frames)
    {:noreply, %{state | version: Frame.version(frame)}}
  end

  def handle_cast({:barytherium, :frames, {frames, sender_pid}}, state) do
    handle_frame(frames, sender_pid, state.version)
    {:noreply, state}
  end

  def handle_cast({:barytherium, :disconnect, reason}, state) do
    Logger.error("Disconnected: #{reason}")
    {:stop, {:shutdown, reason}, state}
  end

  @doc """
  Logs a frame, or each of several, and acknowledges it, by the negotiated version, if it asks for
  that.

  In 1.2 a message does so by its header `ack`. In 1.0 and 1.1 nothing tells; acknowledging what
  needs it not does no harm.
  """
  @spec handle_frame(Frame.t() | [Frame.t()], pid(), Frame.version()) :: :ok
  def handle_frame(frames, sender_pid, version \\ "1.2")

  def handle_frame(frames, sender_pid, version) when is_list(frames),
    do: Enum.each(frames, &handle_frame(&1, sender_pid, version))

  def handle_frame(%Frame{} = frame, sender_pid, version) do
    Logger.info("Received #{inspect(frame)}")

    if Frame.acknowledgeable?(frame, version),
      do: Sender.write(sender_pid, [Frame.ack(frame, version)]),
      else: :ok
  end
end
