defmodule Barytherium.Tail.Signals do
  @moduledoc false
  # Handles SIGTERM, and SIGQUIT, which Ctrl-C sends (see `Barytherium.Tail.Terminal`), in place of OTP's
  # handler, which would end the VM without an exit status that tells why.
  @behaviour :gen_event

  @server :erl_signal_server
  @default :erl_signal_handler

  # What a shell reports for a program that was ended by the signal. For Ctrl-C that is SIGINT.
  @statuses %{sigquit: 130, sigterm: 143}

  # Milliseconds. `timeout` signals its child, and then the group of processes that the child belongs to. Nobody
  # presses Ctrl-C twice in so short a time.
  @one_signal 200

  @doc "Until `untrap/0`, a signal ends the VM with the exit status of the signal."
  @spec trap() :: :ok
  def trap do
    :ok = :gen_event.swap_handler(@server, {@default, []}, {__MODULE__, []})
    Enum.each(Map.keys(@statuses), &:os.set_signal(&1, :handle))
  end

  @doc """
  From now on the first signal calls `stop` with its exit status. What is stopped may not answer, so a later
  signal ends the VM.
  """
  @spec stop_with((pos_integer() -> term())) :: :ok
  def stop_with(stop), do: :gen_event.call(@server, __MODULE__, {:stop_with, stop})

  @spec untrap() :: :ok
  def untrap do
    :gen_event.delete_handler(@server, __MODULE__, [])
    :gen_event.add_handler(@server, @default, [])
  end

  # The state: what the first signal calls, and when it came.
  @impl true
  def init(_swapped), do: {:ok, {&System.halt/1, nil}}

  @impl true
  def handle_event(signal, {stop, nil}) when is_map_key(@statuses, signal) do
    stop.(@statuses[signal])
    {:ok, {stop, now()}}
  end

  def handle_event(signal, {_stop, first} = state) when is_map_key(@statuses, signal) do
    if now() - first > @one_signal, do: System.halt(@statuses[signal])
    {:ok, state}
  end

  # SIGUSR1 for example, for which OTP's handler writes a crash dump.
  def handle_event(signal, state) do
    @default.handle_event(signal, [])
    {:ok, state}
  end

  @impl true
  def handle_call({:stop_with, stop}, _state), do: {:ok, :ok, {stop, nil}}

  defp now, do: System.monotonic_time(:millisecond)
end
