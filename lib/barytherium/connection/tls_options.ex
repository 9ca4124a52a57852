defmodule Barytherium.Connection.TlsOptions do
  @moduledoc false
  # Translates options of `:ssl.connect/4` for the native side. Options or values that it does not
  # know choose `:ssl`.

  alias Barytherium.Native

  # All others choose `:ssl`.
  @translated ~w(cacertfile cacerts cert certfile ciphers key keyfile password
                 server_name_indication verify versions)a

  @versions %{"tlsv1.2": :tls12, "tlsv1.3": :tls13}

  @type plan ::
          {:native, Native.tls_settings(), String.t()} | :otp | {:error, {:options, tuple()}}

  @doc """
  How to connect to `host` with these options: natively with these settings to the server of this name,
  or with `:ssl`. `trusted` returns the system's certificates.
  """
  @spec plan(term(), keyword(), (... -> list())) :: plan()
  def plan(host, opts, trusted) do
    if Enum.all?(opts, fn {name, value} -> name in @translated and value != nil end),
      do: catch_plan(fn -> translate(host, Map.new(opts), trusted) end),
      else: :otp
  end

  # A value that cannot be translated, or not be used, is thrown.
  defp catch_plan(translate) do
    translate.()
  catch
    :otp -> :otp
    {:options, _details} = reason -> {:error, reason}
  end

  defp translate(host, opts, trusted) do
    {name, is_named} = name(opts[:server_name_indication], host)
    {chain, key} = identity(opts)

    settings = %{
      trust: trust(opts[:verify], opts, trusted),
      is_named: is_named,
      chain: chain,
      key: key,
      versions: opts |> Map.get(:versions, Map.keys(@versions)) |> list() |> Enum.map(&version/1),
      ciphers: ciphers(opts[:ciphers])
    }

    {:native, settings, name}
  end

  # `{the name, whether it is sent and checked}`.
  defp name(_indication, {:local, _path}), do: throw(:otp)
  defp name(nil, host), do: {host(host), true}
  defp name(:disable, host), do: {host(host), false}
  defp name(name, _host) when is_binary(name) or is_list(name), do: {text(name), true}
  defp name(_other, _host), do: throw(:otp)

  defp host(host) when is_tuple(host), do: host |> :inet.ntoa() |> to_string()
  defp host(host), do: text(host)

  defp trust(:verify_none, _opts, _trusted), do: :anyone

  defp trust(verify, opts, trusted) when verify in [nil, :verify_peer] do
    case opts do
      %{cacerts: certificates} -> {:authorities, Enum.map(list(certificates), &der/1)}
      %{cacertfile: file} -> {:authorities, certificates(:cacertfile, file)}
      _neither -> {:authorities, Enum.map(trusted.(), &der/1)}
    end
  end

  defp trust(_other, _opts, _trusted), do: throw(:otp)

  # As `:public_key.cacerts_get/0` returns them.
  defp der({:cert, der, _decoded}) when is_binary(der), do: der
  defp der(der) when is_binary(der), do: der
  defp der(_other), do: throw(:otp)

  defp identity(%{cert: [_ | _] = chain} = opts),
    do: {chain |> list() |> Enum.map(&der/1), key!(opts)}

  defp identity(%{cert: der} = opts) when is_binary(der), do: {[der], key!(opts)}
  defp identity(%{certfile: file} = opts), do: {certificates(:certfile, file), key!(opts)}
  defp identity(opts) when is_map_key(opts, :key) or is_map_key(opts, :keyfile), do: throw(:otp)
  defp identity(_opts), do: {[], nil}

  defp key!(%{key: {type, der}}) when is_atom(type) and is_binary(der), do: key(type, der)
  defp key!(%{key: _other}), do: throw(:otp)
  defp key!(%{keyfile: file} = opts), do: key_in(:keyfile, file, opts)
  defp key!(%{certfile: file} = opts), do: key_in(:certfile, file, opts)
  defp key!(_opts), do: throw(:otp)

  defp key(:RSAPrivateKey, der), do: {:pkcs1, der}
  defp key(:ECPrivateKey, der), do: {:sec1, der}
  defp key(:PrivateKeyInfo, der), do: {:pkcs8, der}
  defp key(_other, _der), do: throw(:otp)

  defp key_in(option, file, opts) do
    keys = [:RSAPrivateKey, :ECPrivateKey, :DSAPrivateKey, :PrivateKeyInfo]

    case Enum.find(pem(option, file), fn {type, _der, _cipher} -> type in keys end) do
      {type, der, :not_encrypted} -> key(type, der)
      nil -> throw({:options, {option, file, :no_private_key}})
      encrypted -> decrypt(encrypted, option, file, opts[:password])
    end
  end

  defp decrypt(entry, option, file, password) do
    key = :public_key.pem_entry_decode(entry, password(password))
    {:pkcs8, :public_key.der_encode(:PrivateKeyInfo, key)}
  rescue
    # The error contains the key.
    _error -> throw({:options, {option, file, :wrong_password}})
  end

  defp password(nil), do: []
  defp password(password) when is_function(password, 0), do: password(password.())
  defp password(password), do: to_charlist(password)

  defp certificates(option, file) do
    case for({:Certificate, der, :not_encrypted} <- pem(option, file), do: der) do
      [] -> throw({:options, {option, file, :no_certificate}})
      certificates -> certificates
    end
  end

  defp pem(option, file) when is_binary(file) or is_list(file) do
    case File.read(file) do
      {:ok, text} -> decode(text, option, file)
      {:error, reason} -> throw({:options, {option, file, reason}})
    end
  end

  defp pem(_option, _file), do: throw(:otp)

  defp decode(text, option, file) do
    :public_key.pem_decode(text)
  rescue
    # The error contains what was decoded, which may be a part of a key.
    _error -> throw({:options, {option, file, :not_pem}})
  end

  defp version(version), do: Map.get(@versions, version) || throw(:otp)

  defp ciphers(nil), do: nil

  defp ciphers(ciphers) do
    names = ciphers |> list() |> Enum.map(&cipher/1)
    if Enum.all?(names, &Native.tls_knows_cipher/1), do: names, else: throw(:otp)
  end

  # A suite is a map, or a name of the IANA or of OpenSSL.
  defp cipher(suite) when is_map(suite) do
    case suite |> :ssl.suite_to_str() |> to_string() do
      "TLS_AES_" <> rest -> "TLS13_AES_" <> rest
      "TLS_CHACHA20_" <> rest -> "TLS13_CHACHA20_" <> rest
      name -> name
    end
  end

  defp cipher(name) when is_binary(name) or is_list(name) do
    case name |> to_charlist() |> :ssl.str_to_suite() do
      suite when is_map(suite) -> cipher(suite)
      {:error, _unknown} -> throw(:otp)
    end
  end

  defp cipher(_other), do: throw(:otp)

  defp list([_ | _] = list), do: if(List.improper?(list), do: throw(:otp), else: list)
  defp list(_other), do: throw(:otp)

  defp text(text) do
    to_string(text)
  rescue
    _error -> throw(:otp)
  end
end
